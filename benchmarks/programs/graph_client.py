"""`python -m benchmarks.programs.graph_client ORDER ANSWER`: submit graphs, and measure the time of each.

ORDER is a `GraphOrder` as JSON. The figures go to the file ANSWER, as JSON, too.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
import time
from contextlib import AbstractAsyncContextManager
from itertools import repeat
from pathlib import Path

from benchmarks.programs.graphs import AT_ONCE, Graph, GraphOrder, GraphRunner
from coditect.aio.loop import run_loop


def open_runner(order: GraphOrder) -> AbstractAsyncContextManager[GraphRunner]:
    """Return the runner of the order's side."""
    opened: AbstractAsyncContextManager[GraphRunner] = importlib.import_module(order.driver).open_runner()
    return opened


async def run_many(runner: GraphRunner, graph: Graph, many: int) -> None:
    """Run a graph `many` times, at most `AT_ONCE` of them side by side."""
    graphs = repeat(graph, many)

    async def work() -> None:
        for built in graphs:
            await runner.run(built)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, many)):
            group.create_task(work())


async def measure(order: GraphOrder) -> dict[str, object]:
    """Measure the seconds of each run, from the graph as a value to the checked results of its last layer."""
    seconds = []
    async with open_runner(order) as runner:
        await runner.run(order.warm_up)
        gc.collect()
        gc.freeze()
        for _ in range(order.runs):
            began = time.perf_counter()
            await run_many(runner, order.graph, order.many)
            seconds.append(time.perf_counter() - began)
    return {"nodes": order.graph.nodes * order.many, "layers": len(order.graph.widths), "seconds": seconds}


def main(order: str, answer: str) -> None:
    """Carry out an order, given as JSON, and write its figures to the file `answer`."""
    figures = run_loop(measure(GraphOrder.read(order)))
    Path(answer).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
