"""How fast a side goes and what it costs, from the rounds of its bursts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.charts import Bars, Target
from benchmarks.figures import median, ratio
from benchmarks.parts.sides import WIRES, Side
from benchmarks.verdict import Bound, Figure, Verdict

PROCESSES = ("client", "agent", "broker")
OWN_PROCESSES = ("client", "agent")
MOST_CPU_US = 50.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The rounds of one side."""

    tasks_per_second: tuple[float, ...]
    cpu_microseconds: Mapping[str, tuple[float, ...]]
    """Per task, by process."""


Paces = Mapping[Side, Pace]
"""The sides of one run."""


def pace(rounds: list[dict[str, Any]]) -> Pace:
    """What the client reported, per task."""
    return Pace(
        tuple(one["tasks"] / one["seconds"] for one in rounds),
        {name: tuple(one["cpu_seconds"][name] / one["tasks"] * 1e6 for one in rounds) for name in PROCESSES},
    )


def paces(found: Mapping[Side, list[dict[str, Any]]]) -> dict[Side, Pace]:
    """Of every side that has rounds."""
    return {side: pace(rounds) for side, rounds in found.items() if rounds}


def speed(found: Paces, side: Side) -> float:
    """Tasks per second, the median of the rounds."""
    return median(found[side].tasks_per_second)


def to_aio_pika(found: Paces, side: Side) -> float:
    """How many times as fast as the program written by hand."""
    return ratio(found[side].tasks_per_second, found[Side.AIO_PIKA].tasks_per_second)


def ratio_verdicts(found: Paces, what: str, targets: Mapping[Side, float]) -> tuple[Verdict, ...]:
    """Ours against the program written by hand."""
    return tuple(
        Verdict(f"{what}, {WIRES[side]} / aio-pika", to_aio_pika(found, side), Bound.AT_LEAST, least, "x")
        for side, least in targets.items()
    )


def cpu_verdicts(found: Paces, what: str) -> tuple[Verdict, ...]:
    """What a task costs our own two processes on direct frames."""
    return tuple(
        Verdict(
            f"CPU of the {name} per {what}, direct",
            median(found[Side.DIRECT].cpu_microseconds[name]),
            Bound.AT_MOST,
            MOST_CPU_US,
            "us",
        )
        for name in OWN_PROCESSES
    )


def figures(found: Paces) -> tuple[Figure, ...]:
    """Medians of every side."""
    shown = []
    for side, one in found.items():
        shown.append(Figure(f"{side.value}: tasks per second", median(one.tasks_per_second), "/s"))
        shown += [
            Figure(f"{side.value}: CPU of the {name} per task", median(values), "us")
            for name, values in one.cpu_microseconds.items()
        ]
    return tuple(shown)


def speed_bars(found: Paces, *, name: str, title: str, targets: tuple[Target, ...] = ()) -> Bars:
    """Tasks per second of every side."""
    values = [speed(found, side) for side in found]
    return Bars(name, title, "tasks per second", [side.value for side in found], {"tasks": values}, targets)


def speed_targets(found: Paces, targets: Mapping[Side, float]) -> tuple[Target, ...]:
    """The targets as tasks per second of this run."""
    hand = speed(found, Side.AIO_PIKA)
    return tuple(
        Target(least * hand, f"target of the {WIRES[side]} path, {least:g} x aio-pika")
        for side, least in targets.items()
    )


def cpu_bars(found: Paces, *, name: str, title: str) -> Bars:
    """What a task costs each process of every side."""
    values = {process: [median(found[side].cpu_microseconds[process]) for side in found] for process in PROCESSES}
    target = Target(MOST_CPU_US, f"target of client and agent on direct frames, {MOST_CPU_US:g} us")
    return Bars(name, title, "CPU per task, us", [side.value for side in found], values, (target,))


def raw(found: Paces) -> dict[str, object]:
    """Every round, as JSON can say it."""
    return {side.value: asdict(one) for side, one in found.items()}
