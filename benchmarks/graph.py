"""The task graph beside stock RQ on one Redis: python -m benchmarks.graph [--nodes N] [--rounds N] [--output json]

Create, adopt and finish the jobs of three graphs: a fan-out and fan-in, layers with three predecessors each, and a
chain. Ours in batches as the dispatcher does, stock by `enqueue_many`, `dequeue_any` with `prepare_execution`, and
`handle_job_success`, all without executing a function. Rounds alternate; the figures are medians in µs per node.

A private Redis is started, with its append-only file synced every second. Read the figures only on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from benchmarks.programs.stock_graph import StockGraph
from coditect.local import private_servers
from coditect.model.capability import Priority
from dispatcher.taskgraph.port import BATCH, Change, Job, JobState, TaskGraph
from dispatcher.taskgraph.records import job_id
from dispatcher.taskgraph.redis import RedisTaskGraph

RESULTS_TOGETHER = 64
"""The number of results that arrive together: they are recorded at once, in one call."""
STEPS = ("create", "adopt", "finish")

Edges = dict[str, tuple[str, ...]]
"""The predecessors of each node."""


@dataclass(frozen=True, slots=True)
class Figure:
    graph: str
    nodes: int
    step: str
    ours_us: float
    stock_us: float | None

    @property
    def times(self) -> float | None:
        return None if self.stock_us is None else round(self.stock_us / self.ours_us, 1)


def fan(nodes: int) -> Edges:
    """Return a fan: one node, then the others side by side, then one node after all of them."""
    middle = {f"n{number}": ("first",) for number in range(nodes - 2)}
    return {"first": (), **middle, "last": tuple(middle)}


def layers(nodes: int) -> Edges:
    """Return ten layers, in which each node follows three nodes of the layer before."""
    width = nodes // 10
    edges: Edges = {f"n0_{at}": () for at in range(width)}
    for layer in range(1, 10):
        for at in range(width):
            edges[f"n{layer}_{at}"] = tuple(f"n{layer - 1}_{(at + step) % width}" for step in range(3))
    return edges


def chain(nodes: int) -> Edges:
    """Return a chain of nodes, one after the other, a tenth of the number given."""
    return {f"n{at}": (f"n{at - 1}",) if at else () for at in range(nodes // 10)}


GRAPHS: dict[str, Callable[[int], Edges]] = {"fan": fan, "layers": layers, "chain": chain}


class OurGraph:
    """A workflow in the ledger and RQ as Coditect writes it, in a shard of its own."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph = graph
        self.workflow = str(uuid4())
        self.shard = uuid4().int % 1_000_000_000

    async def create(self, edges: Edges) -> None:
        states = {True: JobState.DEFERRED, False: JobState.QUEUED}
        jobs = [
            Job(self.workflow, node, self.shard, Priority.P1, "bench.work", after, states[bool(after)])
            for node, after in edges.items()
        ]
        await self.graph.create(jobs)

    async def adopt(self) -> list[str]:
        proposals = await self.graph.adopt([self.shard], {"bench.work": BATCH})
        return [job_id(proposal.workflow, proposal.node) for proposal in proposals]

    async def finish(self, jobs: list[str]) -> None:
        nodes = [job.partition("_")[2] for job in jobs]
        changes = [
            Change(self.workflow, node, self.shard, Priority.P1, JobState.FINISHED, b"1", entry="1700000000000-1")
            for node in nodes
        ]
        await self.graph.tell(changes)


async def run(side: OurGraph | StockGraph, edges: Edges) -> dict[str, float]:
    """Return the seconds that each step took over the whole graph."""
    spent = dict.fromkeys(STEPS, 0.0)

    async def timed(step: str, work: Awaitable[object]) -> object:
        began = time.perf_counter()
        answer = await work
        spent[step] += time.perf_counter() - began
        return answer

    await timed("create", side.create(edges))
    finished = 0
    while jobs := await timed("adopt", side.adopt()):
        assert isinstance(jobs, list)
        for at in range(0, len(jobs), RESULTS_TOGETHER):
            await timed("finish", side.finish(jobs[at : at + RESULTS_TOGETHER]))
        finished += len(jobs)
    assert finished == len(edges), f"{finished} of {len(edges)} jobs came"
    return spent


async def measure(url: str, *, nodes: int, rounds: int, stock: bool) -> list[Figure]:
    figures: list[Figure] = []
    async with RedisTaskGraph(url, worker="benchmark") as graph:
        for name, make in GRAPHS.items():
            edges = make(nodes)
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(await run(OurGraph(graph), edges))
                if stock:
                    theirs.append(await run(StockGraph(url), edges))
            figures += _figures(name, edges, ours, theirs)
    return figures


def _figures(name: str, edges: Edges, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Iterator[Figure]:
    def median(rounds: list[dict[str, float]], step: str) -> float:
        return round(statistics.median(measured[step] for measured in rounds) / len(edges) * 1e6, 1)

    for step in STEPS:
        yield Figure(name, len(edges), step, median(ours, step), median(theirs, step) if theirs else None)


def show(figures: list[Figure]) -> None:
    print(f"{'graph':<8} {'nodes':>8} {'step':<8} {'ours µs':>9} {'stock µs':>9} {'times':>7}")
    for figure in figures:
        stock = "" if figure.stock_us is None else f"{figure.stock_us:,.0f}"
        times = "" if figure.times is None else f"{figure.times:,.0f}"
        print(f"{figure.graph:<8} {figure.nodes:>8,} {figure.step:<8} {figure.ours_us:>9,.1f} {stock:>9} {times:>7}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1_000, help="of a graph; a chain has a tenth (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="of each side (default 3)")
    parser.add_argument("--no-stock", action="store_true", help="only ours: stock takes minutes from 10,000 nodes on")
    parser.add_argument("--output", choices=["table", "json"], default="table", help="default table")
    asked = parser.parse_args()

    async def measured() -> list[Figure]:
        with tempfile.TemporaryDirectory() as folder:
            async with private_servers(Path(folder), environ=os.environ, rabbitmq=False) as servers:
                return await measure(
                    servers.redis_url, nodes=asked.nodes, rounds=asked.rounds, stock=not asked.no_stock
                )

    figures = asyncio.run(measured())
    if asked.output == "json":
        print(json.dumps([asdict(figure) | {"times": figure.times} for figure in figures], indent=2))
    else:
        show(figures)


if __name__ == "__main__":
    main()
