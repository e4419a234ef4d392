"""The round trip of tasks one at a time, from submit to the result in hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.charts import Chart, Lines, Target, times
from benchmarks.figures import percentile
from benchmarks.parts.sides import BY_HAND, Side, alternating
from benchmarks.programs.order import Mode, Order
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict

NAME = "round-trip"
WARM_UP = 100
MOST_RATIOS = {50: 1.0, 99: 1.5}
"""The highest ratio to the hand-written program, by percentile."""

RoundTrips = Mapping[Side, tuple[float, ...]]
"""The milliseconds of every round trip of one run."""


def pooled(rounds: list[dict[str, Any]]) -> tuple[float, ...]:
    """Return all round trips of all rounds."""
    return tuple(value for measured in rounds for value in measured["milliseconds"])


async def measure(stage: Stage, size: Size) -> RoundTrips:
    """Measure alternating rounds of all sides."""
    order = Order(Mode.SINGLE, WARM_UP, size.round_trips // size.rounds)
    found = await alternating(stage, BY_HAND, order, rounds=size.rounds)
    return {side: pooled(rounds) for side, rounds in found.items()}


def to_aio_pika(found: RoundTrips, side: Side, share: int) -> float:
    """Return a side's time at a percentile as a multiple of the hand-written aio-pika program's."""
    return percentile(found[side], share) / percentile(found[Side.AIO_PIKA], share)


def verdict(found: RoundTrips) -> tuple[Verdict, ...]:
    """Compare our times with the hand-written aio-pika program's, at the middle and the slow end."""
    return tuple(
        Verdict(
            f"round trip p{share}, coditect / aio-pika",
            to_aio_pika(found, Side.CODITECT, share),
            Bound.AT_MOST,
            most,
            "x",
        )
        for share, most in MOST_RATIOS.items()
    )


def figures(found: RoundTrips) -> tuple[Figure, ...]:
    """Return the percentiles of every side."""
    return tuple(
        Figure(f"{side.value}: round trip p{share}", percentile(values, share), "ms")
        for side, values in found.items()
        for share in (50, 99)
    )


def charts(found: RoundTrips) -> tuple[Chart, ...]:
    """Return a chart of the share of round trips that are done by each time."""
    shares = [*range(1, 100), 99.5]
    return (
        Lines(
            NAME,
            f"Round trip: p50 {times(to_aio_pika(found, Side.CODITECT, 50))} and p99 "
            f"{times(to_aio_pika(found, Side.CODITECT, 99))} that of the hand-written aio-pika program",
            "ms from submit to result in hand",
            "% of the round trips",
            {side.value: [(percentile(values, share), share) for share in shares] for side, values in found.items()},
            tuple(
                Target(most * percentile(found[Side.AIO_PIKA], share), f"p{share} target", upright=True)
                for share, most in MOST_RATIOS.items()
            ),
            level_logarithmic=True,
            marked=False,
        ),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure the round trips of all sides, and judge the middle and the slow end."""
    found = await measure(stage, size)
    raw = {side.value: values for side, values in found.items()}
    return Findings(NAME, verdict(found), figures(found), raw, charts(found))
