"""`python -m benchmarks.parts.visit CORE ORDER ANSWER`: run graphs on one core, with servers and a fleet of its own.

ORDER is a `GraphOrder` as JSON. The figures go to the file ANSWER, as JSON, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.parts.graph_sides import fleet, ordered
from benchmarks.programs.graphs import GraphOrder
from benchmarks.stage import Stage, open_stage, python
from coditect.aio.loop import run_loop

SLOTS = 100
"""The slots of each of the two agents: layers of 1,000 nodes then exceed what may be under way."""
LOOK_SECONDS = 0.1
LONGEST_SECONDS = 900.0
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Visit:
    """The figures of a measurement on one core; megabytes are the peak of the dispatcher's resident memory."""

    seconds: tuple[float, ...]
    """The seconds of each run."""
    megabytes: float


async def visit(stage: Stage, order: GraphOrder, core: int) -> Visit:
    """Measure an order on one core, with all processes on that core; other load of the machine is not considered.

    Raises:
        ProgramFailed: when a program fails.
    """
    program = python("visit", "benchmarks.parts.visit", str(core), order.written())
    report = await stage.finished(replace(program, seconds=LONGEST_SECONDS + START_SECONDS))
    return Visit(tuple(report["seconds"]), report["megabytes"])


@asynccontextmanager
async def peak_megabytes(pid: int) -> AsyncIterator[list[float]]:
    """Watch a process during the block; yield a list of one element, the peak of its resident memory in megabytes."""
    process, most = psutil.Process(pid), [0.0]

    async def look() -> None:
        while True:
            most[0] = max(most[0], process.memory_info().rss / 1e6)
            await asyncio.sleep(LOOK_SECONDS)

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        yield most
        looking.cancel()


async def measure(order: GraphOrder) -> dict[str, object]:
    """Measure on a fresh dispatcher with an empty ledger, and two agents."""
    async with (
        open_stage() as stage,
        fleet(stage, slots=SLOTS) as plane,
        peak_megabytes(plane.pid) as most,
    ):
        report = await ordered(stage, order, seconds=LONGEST_SECONDS)
    return {"seconds": report["seconds"], "megabytes": most[0]}


def main(core: str, order: str, answer: str) -> None:
    """Run one measurement; the module's first lines describe the arguments."""
    os.sched_setaffinity(0, {int(core)})
    figures = run_loop(measure(GraphOrder.read(order)))
    Path(answer).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
