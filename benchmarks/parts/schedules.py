"""Schedules: how late the ticks of many are, and what many cost that do not tick."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from uuid import UUID

import psutil

from benchmarks.figures import percentile
from benchmarks.parts.graph_sides import dispatcher
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client, Workflow

NAME = "schedules"
ROUND_MINUTES = 5
"""The period of each schedule that ticks; their ticks are spread over its seconds."""
AT_ONCE = 16
SETTLE_SECONDS = 3.0
MOST_LATE_SECONDS = 1.0
MOST_IDLE_PERCENT = 1.0


@dataclass(frozen=True, slots=True)
class ScheduleTimes:
    """The measured figures of a run."""

    schedules: int
    idle_percent_without: float
    """The per cent of a core that a dispatcher without schedules takes."""
    idle_percent_with: float
    """The same with all schedules, none of which ticks meanwhile."""
    late: tuple[float, ...]
    """For each tick the seconds until its workflow was accepted."""


def yearly(_: int) -> str:
    """Return a cron expression that does not tick during the run."""
    return f"0 0 {1 + (datetime.now(UTC).day + 13) % 28} {1 + datetime.now(UTC).month % 12} *"


def spread(number: int) -> str:
    """Return the cron expression of a schedule by its number: every five minutes, at a second of its own."""
    second, minute = number % 60, number // 60 % ROUND_MINUTES
    return f"{second} {minute}-59/{ROUND_MINUTES} * * * *"


async def make(client: Client, count: int, cron: Callable[[int], str]) -> None:
    """Make so many schedules, or change them if they are there."""
    flow, numbers = Workflow("tick"), iter(range(count))
    flow.wait("1s", name="only")

    async def some() -> None:
        for number in numbers:
            await client.schedules.create(f"bench-{number}", flow, cron=cron(number), replace=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())


async def cpu_percent(pid: int, seconds: float) -> float:
    """Return the per cent of a core that a process takes."""
    await asyncio.sleep(SETTLE_SECONDS)
    process = psutil.Process(pid)
    before, began = process.cpu_times(), time.monotonic()
    await asyncio.sleep(seconds)
    after, ran = process.cpu_times(), time.monotonic() - began
    return 100 * (after.user + after.system - before.user - before.system) / ran


def lateness(workflow: str, accepted_at_ms: int | None) -> float:
    """Return the seconds from a tick, which is in the id of its workflow, to the workflow's acceptance."""
    tick_ms = UUID(workflow).int >> 80
    return ((accepted_at_ms or 0) - tick_ms) / 1000


async def measure(stage: Stage, size: Size) -> ScheduleTimes:
    """Measure an idle dispatcher without and with schedules, and then the ticks of all."""
    async with stage.running(dispatcher(stage)) as pid, Client.connecting(stage.settings) as client:
        without = await cpu_percent(pid, size.idle_seconds)
        await make(client, size.schedules, yearly)
        with_all = await cpu_percent(pid, size.idle_seconds)
        await make(client, size.schedules, spread)
        since = datetime.now(UTC)
        await asyncio.sleep(size.ticking_seconds)
        rows = [row async for row in client.workflows.list(name="tick", since=since, until=datetime.now(UTC))]
    late = tuple(lateness(row.workflow, row.accepted_at_ms) for row in rows)
    return ScheduleTimes(size.schedules, without, with_all, late)


def verdicts(found: ScheduleTimes) -> tuple[Verdict, ...]:
    """Judge how late the ticks were, and what schedules cost that wait."""
    late, idle = percentile(found.late, 99), found.idle_percent_with - found.idle_percent_without
    return (
        Verdict(f"ticks of {found.schedules:,} schedules, late p99", late, Bound.BELOW, MOST_LATE_SECONDS, "s"),
        Verdict("idle cost of all, of a core", idle, Bound.AT_MOST, MOST_IDLE_PERCENT, "%"),
    )


def figures(found: ScheduleTimes) -> tuple[Figure, ...]:
    """Return the number of ticks, their middle, and the cost of an idle dispatcher."""
    return (
        Figure("ticks", len(found.late)),
        Figure("late p50", percentile(found.late, 50), "s"),
        Figure("idle without schedules, of a core", found.idle_percent_without, "%"),
        Figure("idle with all, of a core", found.idle_percent_with, "%"),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure schedules, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found), figures(found), asdict(found))
