"""The use of 100 slots by tasks that wait 100 ms: the share of the ideal speed when only the slots limit it.

The tasks are P0, for which every slot is open. For P1 and P2 an agent keeps one slot free (99 of 100), which is shown
beside it without a target.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from benchmarks.figures import median
from benchmarks.parts.waiting import RESULT_SECONDS, submit_waits, waiting_agent
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client, Priority

NAME = "slots"
SLOTS = 100
TASKS = 1_000
MILLISECONDS = 100
IDEAL_SECONDS = TASKS * MILLISECONDS / 1000 / SLOTS
LEAST_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Walls:
    """The seconds from the first submit to the last result, a value for each repetition."""

    p0: tuple[float, ...]
    p1: tuple[float, ...]


async def wall_seconds(client: Client, priority: Priority) -> float:
    """Run one repetition, and return its seconds."""
    began = time.perf_counter()
    for handle in await submit_waits(client, TASKS, milliseconds=MILLISECONDS, priority=priority):
        await handle.result(timeout=RESULT_SECONDS)
    return time.perf_counter() - began


async def measure(stage: Stage, size: Size) -> Walls:
    """Measure repetitions on one agent, after a first one that does not count."""
    walls: dict[Priority, list[float]] = {Priority.P0: [], Priority.P1: []}
    async with stage.running(waiting_agent(slots=SLOTS)), Client.connecting(stage.settings) as client:
        for priority, seconds in walls.items():
            await wall_seconds(client, priority)
            for _ in range(size.repeats):
                seconds.append(await wall_seconds(client, priority))
    return Walls(tuple(walls[Priority.P0]), tuple(walls[Priority.P1]))


def verdict(found: Walls) -> tuple[Verdict, ...]:
    """Judge the ideal wall time over the median measured one."""
    share = 100 * IDEAL_SECONDS / median(found.p0)
    return (
        Verdict(f"{TASKS:,} tasks of 100 ms on 100 slots, of the ideal", share, Bound.AT_LEAST, 100 * LEAST_SHARE, "%"),
    )


def figures(found: Walls) -> tuple[Figure, ...]:
    """Return the median wall times of P0, on all 100 slots, and of P1, on 99."""
    return (
        Figure("wall, P0 (100 slots)", median(found.p0), "s"),
        Figure("wall, P1 (99 of 100 slots: 1.1 s are ideal)", median(found.p1), "s"),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure tasks on 100 slots, and judge the time beside the ideal."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), asdict(found))
