"""The speed of a side and its cost, from the rounds of its bursts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.charts import Bars, Target
from benchmarks.figures import median, ratio
from benchmarks.parts.sides import Side
from benchmarks.verdict import Bound, Figure, Verdict

PROCESSES = ("client", "agent", "broker")
OWN_PROCESSES = ("client", "agent")
MOST_CPU_US = 50.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed and cost of one side, by round."""

    tasks_per_second: tuple[float, ...]
    cpu_microseconds: Mapping[str, tuple[float, ...]]
    """The processor time per task, by process."""


Paces = Mapping[Side, Pace]
"""The paces of the sides in one run."""


def pace(rounds: list[dict[str, Any]]) -> Pace:
    """Return the client's figures per task."""
    return Pace(
        tuple(measured["tasks"] / measured["seconds"] for measured in rounds),
        {
            name: tuple(measured["cpu_seconds"][name] / measured["tasks"] * 1e6 for measured in rounds)
            for name in PROCESSES
        },
    )


def paces(found: Mapping[Side, list[dict[str, Any]]]) -> dict[Side, Pace]:
    """Return the pace of every side that has rounds."""
    return {side: pace(rounds) for side, rounds in found.items() if rounds}


def speed(found: Paces, side: Side) -> float:
    """Return a side's tasks per second, the median of its rounds."""
    return median(found[side].tasks_per_second)


def to_aio_pika(found: Paces, side: Side) -> float:
    """Return a side's speed as a multiple of the hand-written aio-pika program's."""
    return ratio(found[side].tasks_per_second, found[Side.AIO_PIKA].tasks_per_second)


def ratio_verdict(found: Paces, label: str, least: float) -> Verdict:
    """Compare our speed with the hand-written aio-pika program's."""
    return Verdict(f"{label}, coditect / aio-pika", to_aio_pika(found, Side.CODITECT), Bound.AT_LEAST, least, "x")


def cpu_verdicts(found: Paces, label: str) -> tuple[Verdict, ...]:
    """Judge the processor time per task of our client and agent."""
    return tuple(
        Verdict(
            f"CPU of the {name} per {label}",
            median(found[Side.CODITECT].cpu_microseconds[name]),
            Bound.AT_MOST,
            MOST_CPU_US,
            "us",
        )
        for name in OWN_PROCESSES
    )


def figures(found: Paces) -> tuple[Figure, ...]:
    """Return the medians of every side."""
    shown = []
    for side, pace in found.items():
        shown.append(Figure(f"{side.value}: tasks per second", median(pace.tasks_per_second), "/s"))
        shown += [
            Figure(f"{side.value}: CPU of the {name} per task", median(values), "us")
            for name, values in pace.cpu_microseconds.items()
        ]
    return tuple(shown)


def speed_bars(found: Paces, *, name: str, title: str, targets: tuple[Target, ...] = ()) -> Bars:
    """Return a bar chart of the tasks per second of every side."""
    values = [speed(found, side) for side in found]
    return Bars(name, title, "tasks per second", [side.value for side in found], {"tasks": values}, targets)


def speed_target(found: Paces, least: float) -> Target:
    """Return the target in tasks per second: a multiple of the aio-pika program's speed in the same run."""
    return Target(least * speed(found, Side.AIO_PIKA), f"target, {least:g} x aio-pika")


def cpu_bars(found: Paces, *, name: str, title: str) -> Bars:
    """Return a bar chart of the processor time per task, of each process of every side."""
    values = {process: [median(found[side].cpu_microseconds[process]) for side in found] for process in PROCESSES}
    target = Target(MOST_CPU_US, f"target of client and agent, {MOST_CPU_US:g} us")
    return Bars(name, title, "CPU per task, us", [side.value for side in found], values, (target,))


def raw(found: Paces) -> dict[str, object]:
    """Return every round as values that JSON can express."""
    return {side.value: asdict(pace) for side, pace in found.items()}
