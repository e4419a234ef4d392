"""No-op tasks with a result each, as fast as they go: one client process, one agent process, the broker."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.figures import median, ratio
from benchmarks.parts.pair import Mode, Side, alternating
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict

NAME = "throughput"
LEAST_RATIO = 0.9
PROCESSES = ("client", "agent", "broker")


@dataclass(frozen=True, slots=True)
class Pace:
    """The rounds of one side."""

    tasks_per_second: tuple[float, ...]
    cpu_microseconds: dict[str, tuple[float, ...]]
    """Per task, by process."""


@dataclass(frozen=True, slots=True)
class Paces:
    """Both sides, of one run."""

    ours: Pace
    theirs: Pace


def pace(rounds: list[dict[str, Any]]) -> Pace:
    """What the client reported, per task."""
    return Pace(
        tuple(one["tasks"] / one["seconds"] for one in rounds),
        {name: tuple(one["cpu_seconds"][name] / one["tasks"] * 1e6 for one in rounds) for name in PROCESSES},
    )


async def measure(stage: Stage, size: Size) -> Paces:
    """Alternating rounds of both."""
    found = await alternating(stage, Mode("burst", size.warm_up, size.tasks), rounds=size.rounds)
    return Paces(pace(found[Side.OURS]), pace(found[Side.THEIRS]))


def verdict(found: Paces) -> tuple[Verdict, ...]:
    """Ours against theirs, medians of the rounds."""
    share = ratio(found.ours.tasks_per_second, found.theirs.tasks_per_second)
    return (Verdict("no-op tasks per second, ours / aio-pika", share, Bound.AT_LEAST, LEAST_RATIO, "x"),)


def figures(found: Paces) -> tuple[Figure, ...]:
    """Medians of both sides."""
    shown = []
    for side, one in ((Side.OURS, found.ours), (Side.THEIRS, found.theirs)):
        shown.append(Figure(f"{side.value}: tasks per second", median(one.tasks_per_second), "/s"))
        shown += [
            Figure(f"{side.value}: CPU of the {name} per task", median(values), "us")
            for name, values in one.cpu_microseconds.items()
        ]
    return tuple(shown)


async def run(stage: Stage, size: Size) -> Findings:
    """Measures and judges."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), asdict(found))
