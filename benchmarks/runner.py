"""Runs the parts that are wanted, one after the other, on servers of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.parts import footprint, priorities, round_trip, slots, throughput
from benchmarks.parts.pair import Mode, Side, one_round
from benchmarks.profiling import summary
from benchmarks.report import Report
from benchmarks.size import Size
from benchmarks.stage import Stage, open_stage
from benchmarks.verdict import Findings

Part = Callable[[Stage, Size], Awaitable[Findings]]

PARTS: dict[str, Part] = {
    throughput.NAME: throughput.run,
    round_trip.NAME: round_trip.run,
    slots.NAME: slots.run,
    priorities.NAME: priorities.run,
    footprint.NAME: footprint.run,
}


def now() -> str:
    """The name of a run."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


async def run_parts(names: Sequence[str], size: Size, *, command: str, tell: Callable[[Findings], None]) -> Report:
    """Measures the named parts; `tell` hears of each as soon as it is done."""
    time = now()
    async with open_stage() as stage:
        machine = await describe(stage.settings.amqp_url, stage.settings.redis_url)
        findings = []
        for name in names:
            found = await PARTS[name](stage, size)
            findings.append(found)
            tell(found)
    return Report(time, command, machine, findings)


async def run_profile(size: Size, files: Sequence[Path]) -> str:
    """One burst of ours; client and agent write their profiles to the two files; gives their top lines."""
    async with open_stage() as stage:
        mode = Mode("burst", size.warm_up, size.tasks)
        await one_round(stage, Side.OURS, mode, profiles=[str(file) for file in files])
    return "\n".join(f"## {file.stem}\n\n{summary(file)}" for file in files)
