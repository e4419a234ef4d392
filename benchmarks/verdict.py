"""A target of the project, and whether a measurement meets it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.charts import Chart


class Bound(StrEnum):
    """The side of a target on which good values are."""

    AT_LEAST = "at least"
    AT_MOST = "at most"
    BELOW = "below"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target of the project with its measurement, both in `unit`."""

    name: str
    measured: float
    bound: Bound
    target: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        """Whether the measurement meets the target."""
        match self.bound:
            case Bound.AT_LEAST:
                return self.measured >= self.target
            case Bound.AT_MOST:
                return self.measured <= self.target
            case Bound.BELOW:
                return self.measured < self.target


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number without a target."""

    name: str
    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of a part; `raw` holds every measurement, as values that JSON can express."""

    part: str
    verdicts: tuple[Verdict, ...]
    figures: tuple[Figure, ...]
    raw: object
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    """Facts that a reader must know: settings, or what could not be measured and why."""
    complete: bool = True
    """Whether the part ended; False when it failed before it had its figures."""
