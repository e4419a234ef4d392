"""One task at a time: from submit to the result in hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.figures import percentile
from benchmarks.parts.pair import Mode, Side, alternating
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict

NAME = "round-trip"
WARM_UP = 100
MOST_P50_RATIO = 1.3
MOST_P99_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Milliseconds of every round trip of one run."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]


def pooled(rounds: list[dict[str, Any]]) -> tuple[float, ...]:
    """All round trips of all rounds."""
    return tuple(value for one in rounds for value in one["milliseconds"])


async def measure(stage: Stage, size: Size) -> RoundTrips:
    """Alternating rounds of both."""
    mode = Mode("single", WARM_UP, size.round_trips // size.rounds)
    found = await alternating(stage, mode, rounds=size.rounds)
    return RoundTrips(pooled(found[Side.OURS]), pooled(found[Side.THEIRS]))


def verdict(found: RoundTrips) -> tuple[Verdict, ...]:
    """Ours against theirs, the middle and the slow end."""
    p50, p99 = (percentile(found.ours, share) / percentile(found.theirs, share) for share in (50, 99))
    return (
        Verdict("round trip p50, ours / aio-pika", p50, Bound.AT_MOST, MOST_P50_RATIO, "x"),
        Verdict("round trip p99, ours / aio-pika", p99, Bound.AT_MOST, MOST_P99_RATIO, "x"),
    )


def figures(found: RoundTrips) -> tuple[Figure, ...]:
    """Percentiles of both sides."""
    return tuple(
        Figure(f"{side.value}: round trip p{share}", percentile(values, share), "ms")
        for side, values in ((Side.OURS, found.ours), (Side.THEIRS, found.theirs))
        for share in (50, 99)
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measures and judges."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), asdict(found))
