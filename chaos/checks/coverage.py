"""The coverage of a chaos run's faults, by kind: how many faults hit work under way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chaos.checks.history_index import TERMINAL, HistoryIndex, Operation
from chaos.history import UNENDED, post_of

FEWEST_PER_SECOND = 0.5
"""The number of faults per second below which a run proves nothing."""


@dataclass(frozen=True, slots=True)
class FaultCoverage:
    """The coverage of one kind of fault: how many faults there were, and how many hit work under way."""

    kind: str
    faults: int
    hitting: int
    """The number of faults that hit work under way."""
    in_flight: int
    """The number of tasks under way that the faults hit, in all."""


@dataclass(frozen=True, slots=True)
class Toll:
    """The counts of a chaos run's faults, and of those that hit work under way, by kind, with the run's length."""

    kinds: tuple[FaultCoverage, ...]
    seconds: float

    @property
    def faults(self) -> int:
        """The number of faults of all kinds in the run."""
        return sum(one.faults for one in self.kinds)

    @property
    def per_second(self) -> float:
        """The number of faults per second of the run."""
        return self.faults / self.seconds if self.seconds else 0.0

    @property
    def objections(self) -> tuple[str, ...]:
        """The reasons why the faults test too little: too few faults, or a kind that hit no work; else empty."""
        told = [f"{one.kind} never hit work in flight" for one in self.kinds if not one.hitting]
        if self.per_second < FEWEST_PER_SECOND:
            told.append(f"there was less than one fault in 2 s: {self.per_second:.2f} a second")
        return tuple(told)

    def lines(self) -> list[str]:
        """Return the coverage of faults as lines for a person."""
        return [f"{self.faults} faults in {self.seconds:.0f} s, {self.per_second:.2f} a second"] + [
            f"  {one.kind:<18} {one.faults:>4}, of which {one.hitting:>4} hit work in flight ({one.in_flight} in all)"
            for one in self.kinds
        ]


class Spans:
    """A set of time intervals, with a fast count of the intervals that are open at an instant."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self._begun = sorted(begun for begun, _ in spans)
        self._ended = sorted(ended for _, ended in spans)

    def open_at(self, instant: float) -> int:
        """Return how many of the intervals had begun and not ended at the instant."""
        return bisect_right(self._begun, instant) - bisect_right(self._ended, instant)


def toll(index: HistoryIndex, kinds: Sequence[str], *, seconds: float) -> Toll:
    """Count, for each given kind of fault, the faults of a run, and those that hit work under way."""
    runs = executed_spans(index)
    everywhere = Spans([span for spans in runs.values() for span in spans])
    agents = {proc: Spans(spans) for proc, spans in runs.items()}
    work, claimed = Spans(_work(index)), Spans(_claimed(index))

    def met(fault: Operation) -> int:
        match fault.key.partition("-")[0]:
            case "agent":
                return agents[fault.key].open_at(fault.begun) if fault.key in agents else 0
            case "dispatcher":
                return claimed.open_at(fault.begun)
            case "redis" | "stranger" | "request":
                return work.open_at(fault.begun)
            case _:
                return everywhere.open_at(fault.begun)

    return Toll(tuple(_of_kind(kind, index, met) for kind in kinds), seconds)


def _of_kind(kind: str, index: HistoryIndex, met: Callable[[Operation], int]) -> FaultCoverage:
    counts = [met(fault) for fault in (*index.faults, *index.of("send")) if fault.val.get("kind") == kind]
    return FaultCoverage(kind, len(counts), sum(count > 0 for count in counts), sum(counts))


def executed_spans(index: HistoryIndex) -> dict[str, list[tuple[float, float]]]:
    """Return the time intervals of each agent's executions; the kill of an agent ends its intervals."""
    deaths: dict[str, list[float]] = {}
    for fault in index.of("kill"):
        deaths.setdefault(fault.key, []).append(fault.begun)
    runs: dict[str, list[tuple[float, float]]] = {}
    for one in index.of("execute"):
        died = next((instant for instant in deaths.get(post_of(one.proc), ()) if instant >= one.begun), UNENDED)
        # The fault itself still meets what it ends.
        ended = one.ended if one.ended <= died else died + 1e-6
        runs.setdefault(post_of(one.proc), []).append((one.begun, ended))
    return runs


def _work(index: HistoryIndex) -> list[tuple[float, float]]:
    ends = {one.key: one.begun for one in index.of("end")}
    return [(one.begun, ends.get(one.key, UNENDED)) for one in index.of("accept") if one.possible]


def _claimed(index: HistoryIndex) -> list[tuple[float, float]]:
    """Return the time interval of each node from its first claim to its terminal state."""
    spans = []
    for key, claims in index.by_key("claim"):
        ends = [one.begun for one in index.about("state", key) if one.possible and one.val["state"] in TERMINAL]
        spans.append((claims[0].begun, min(ends, default=UNENDED)))
    return spans
