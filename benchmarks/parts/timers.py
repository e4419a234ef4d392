"""Timers: how long a control plane takes for many waiting nodes that are all due in the same second."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from benchmarks.parts.graph_sides import dispatcher
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client, Workflow
from coditect.client.workflow_run import WorkflowRun

NAME = "timers"
NODES = 100
"""The waiting nodes of each workflow."""
AHEAD_SECONDS_PER_NODE = 0.003
"""The time per node from the first submission until all are due, so that all wait before that."""
AT_ONCE = 8
MOST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class TimerTimes:
    """The measured times of a run."""

    timers: int
    late: bool
    """Whether some workflows were submitted after the instant at which their nodes were due."""
    first: float
    """The seconds from that instant until the first workflow was known to have ended."""
    last: float


def flow_until(due: float) -> Workflow:
    """Return a workflow of nodes that all wait until the same instant."""
    flow = Workflow("due")
    for number in range(NODES):
        flow.wait_until(datetime.fromtimestamp(due, UTC), name=f"n{number}")
    return flow


async def measure(stage: Stage, size: Size) -> TimerTimes:
    """Submit workflows whose nodes are due at one instant, and wait for the ends of all."""
    due = time.time() + 5 + size.timers * AHEAD_SECONDS_PER_NODE
    flow, ends, places = flow_until(due), list[float](), asyncio.Semaphore(AT_ONCE)
    async with stage.running(dispatcher(stage)), Client.connecting(stage.settings) as client:

        async def submitted() -> WorkflowRun:
            async with places:
                return await client.start(flow)

        async def ended(run: WorkflowRun) -> None:
            await run.wait(timeout=600)
            ends.append(time.time() - due)

        runs = await asyncio.gather(*(submitted() for _ in range(size.timers // NODES)))
        late = time.time() > due
        await asyncio.gather(*map(ended, runs))
    return TimerTimes(size.timers, late, min(ends), max(ends))


def verdicts(found: TimerTimes) -> tuple[Verdict, ...]:
    """Judge the time until the last of the timers was done."""
    name = f"{found.timers:,} timers of one second, all done"
    return (Verdict(name, found.last, Bound.BELOW, MOST_SECONDS, "s"),)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure timers, and judge them."""
    found = await measure(stage, size)
    notes = ("some workflows were submitted too late for their instant",) if found.late else ()
    first = Figure("first workflow done", found.first, "s")
    return Findings(NAME, verdicts(found), (first,), asdict(found), notes=notes)
