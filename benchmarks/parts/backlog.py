"""Speed and memory with growing backlogs: tasks are queued before any agent runs, and then drained.

The tasks want no result. One client process submits while no agent runs; then one agent process executes them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from benchmarks.charts import Chart, Lines, Target
from benchmarks.parts.sides import Side, agent_of, client_of, with_tally
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.tally import span_seconds, total
from benchmarks.programs.workload import COUNT
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict

NAME = "backlog"
WARM_UP = 500
LOOK_SECONDS = 0.1
LONGEST_SECONDS = 1_800.0
REFERENCE = 10_000
"""A backlog of this many tasks has filled every window and buffer: a deeper one should need no more memory."""
MOST_GROWTH_MB = 20.0
"""The bound of growth, which even 20 bytes kept for each of a million tasks would reach."""


@dataclass(frozen=True, slots=True)
class Depth:
    """The figures of one backlog; megabytes are resident memory, before the first task and after the last task."""

    queued: int
    submitted_per_second: float
    drained_per_second: float
    client_megabytes: tuple[float, float]
    agent_megabytes: tuple[float, float]


async def drained(folder: Path, wanted: int) -> float:
    """Wait until the agent has executed `wanted` tasks; return the seconds from its first task to its last one.

    Raises:
        TimeoutError: when that takes longer than LONGEST_SECONDS.
    """
    async with asyncio.timeout(LONGEST_SECONDS):
        while total(folder) < wanted:  # noqa: ASYNC110 - another process counts
            await asyncio.sleep(LOOK_SECONDS)
    return span_seconds(folder)


async def one_depth(stage: Stage, queued: int) -> Depth:
    """Submit and drain one backlog, from an empty queue to an empty queue."""
    order = with_tally(stage, Order(Mode.FILL, WARM_UP, queued - WARM_UP))
    await stage.declare(COUNT)
    filled = await stage.finished(replace(client_of(Side.CODITECT, order), seconds=LONGEST_SECONDS))
    async with stage.running(agent_of(Side.CODITECT, order)) as pid:
        process = psutil.Process(pid)
        before = process.memory_info().rss
        seconds = await drained(Path(order.tally), queued)
        after = process.memory_info().rss
    await stage.forget([COUNT])
    return Depth(
        queued,
        filled["tasks"] / filled["seconds"],
        queued / seconds,
        (filled["megabytes"][0], filled["megabytes"][1]),
        (before / 1e6, after / 1e6),
    )


async def measure(stage: Stage, size: Size) -> tuple[Depth, ...]:
    """Measure one backlog after the other."""
    return tuple([await one_depth(stage, queued) for queued in size.depths])


def reference(found: Sequence[Depth]) -> Depth:
    """Return the backlog with which the deepest one is compared."""
    return next((depth for depth in found if depth.queued >= REFERENCE), found[-1])


def growth(found: Sequence[Depth]) -> dict[str, float]:
    """Return the megabytes that the deepest backlog takes more than the reference, by process."""
    deepest, usual = found[-1], reference(found)
    return {
        "client": deepest.client_megabytes[1] - usual.client_megabytes[1],
        "agent": deepest.agent_megabytes[1] - usual.agent_megabytes[1],
    }


def verdict(found: Sequence[Depth]) -> tuple[Verdict, ...]:
    """Judge whether the deepest backlog leaves the memory as it was."""
    depths = f"{reference(found).queued:,} to {found[-1].queued:,} queued"
    return tuple(
        Verdict(f"{name}'s memory, growth from {depths}", megabytes, Bound.AT_MOST, MOST_GROWTH_MB, "MB")
        for name, megabytes in growth(found).items()
    )


def figures(found: Sequence[Depth]) -> tuple[Figure, ...]:
    """Return speed and memory for each backlog."""
    shown = []
    for depth in found:
        of = f"{depth.queued:,} queued"
        shown += [
            Figure(f"{of}: submitted", depth.submitted_per_second, "/s"),
            Figure(f"{of}: drained", depth.drained_per_second, "/s"),
            Figure(f"{of}: client, before", depth.client_megabytes[0], "MB"),
            Figure(f"{of}: client, after", depth.client_megabytes[1], "MB"),
            Figure(f"{of}: agent, before", depth.agent_megabytes[0], "MB"),
            Figure(f"{of}: agent, after", depth.agent_megabytes[1], "MB"),
        ]
    return tuple(shown)


def charts(found: Sequence[Depth]) -> tuple[Chart, ...]:
    """Return charts of speed and memory over the number of queued tasks."""
    deepest, usual = found[-1], reference(found)
    grown = max(growth(found).values())
    return (
        Lines(
            NAME,
            f"A backlog of {deepest.queued:,}: submitted at {deepest.submitted_per_second:,.0f} and drained at "
            f"{deepest.drained_per_second:,.0f} tasks per second",
            "tasks queued",
            "tasks per second",
            {
                "submitted": [(depth.queued, depth.submitted_per_second) for depth in found],
                "drained": [(depth.queued, depth.drained_per_second) for depth in found],
            },
            level_logarithmic=True,
        ),
        Lines(
            "memory",
            f"{usual.queued:,} or {deepest.queued:,} tasks queued: at most {grown:+.0f} MB in client and agent",
            "tasks queued",
            "MB resident at the end",
            {
                "client": [(depth.queued, depth.client_megabytes[1]) for depth in found],
                "agent": [(depth.queued, depth.agent_megabytes[1]) for depth in found],
            },
            tuple(
                Target(megabytes + MOST_GROWTH_MB, f"bound of the {name}: {MOST_GROWTH_MB:g} MB more")
                for name, megabytes in (("client", usual.client_megabytes[1]), ("agent", usual.agent_megabytes[1]))
            ),
            level_logarithmic=True,
        ),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure growing backlogs, and judge the memory that is left after the deepest."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), [asdict(depth) for depth in found], charts(found))
