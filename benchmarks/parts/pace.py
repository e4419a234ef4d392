"""The speed of a side and its cost, from the rounds of its bursts."""

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
    """The speed and cost of one side, by round."""

    tasks_per_second: tuple[float, ...]
    cpu_microseconds: Mapping[str, tuple[float, ...]]
    """The processor time per task, by process."""


Paces = Mapping[Side, Pace]
"""The paces of the sides in one run."""


def pace(rounds: list[dict[str, Any]]) -> Pace:
    """Return the client's figures per task."""
    return Pace(
        tuple(one["tasks"] / one["seconds"] for one in rounds),
        {name: tuple(one["cpu_seconds"][name] / one["tasks"] * 1e6 for one in rounds) for name in PROCESSES},
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


def ratio_verdicts(found: Paces, what: str, targets: Mapping[Side, float]) -> tuple[Verdict, ...]:
    """Compare our speed with the hand-written aio-pika program's, by wire path."""
    return tuple(
        Verdict(f"{what}, {WIRES[side]} / aio-pika", to_aio_pika(found, side), Bound.AT_LEAST, least, "x")
        for side, least in targets.items()
    )


def cpu_verdicts(found: Paces, what: str) -> tuple[Verdict, ...]:
    """Judge the processor time per task of our client and agent on direct frames."""
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
    """Return the medians of every side."""
    shown = []
    for side, one in found.items():
        shown.append(Figure(f"{side.value}: tasks per second", median(one.tasks_per_second), "/s"))
        shown += [
            Figure(f"{side.value}: CPU of the {name} per task", median(values), "us")
            for name, values in one.cpu_microseconds.items()
        ]
    return tuple(shown)


def speed_bars(found: Paces, *, name: str, title: str, targets: tuple[Target, ...] = ()) -> Bars:
    """Return a bar chart of the tasks per second of every side."""
    values = [speed(found, side) for side in found]
    return Bars(name, title, "tasks per second", [side.value for side in found], {"tasks": values}, targets)


def speed_targets(found: Paces, targets: Mapping[Side, float]) -> tuple[Target, ...]:
    """Return the targets in tasks per second: multiples of the aio-pika program's speed in the same run."""
    hand = speed(found, Side.AIO_PIKA)
    return tuple(
        Target(least * hand, f"target of the {WIRES[side]} path, {least:g} x aio-pika")
        for side, least in targets.items()
    )


def cpu_bars(found: Paces, *, name: str, title: str) -> Bars:
    """Return a bar chart of the processor time per task, of each process of every side."""
    values = {process: [median(found[side].cpu_microseconds[process]) for side in found] for process in PROCESSES}
    target = Target(MOST_CPU_US, f"target of client and agent on direct frames, {MOST_CPU_US:g} us")
    return Bars(name, title, "CPU per task, us", [side.value for side in found], values, (target,))


def raw(found: Paces) -> dict[str, object]:
    """Return every round as values that JSON can express."""
    return {side.value: asdict(one) for side, one in found.items()}
