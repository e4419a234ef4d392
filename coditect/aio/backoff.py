"""Exponential backoff: pauses between retries, each twice as long as the one before, up to a bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Backoff:
    """An exponential backoff with a first and a longest pause, in seconds, and without jitter of its own."""

    first: float
    longest: float

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after the given number of failures in a row, 1 or more."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 40))

    def pauses(self) -> Iterator[float]:
        """Yield without end the seconds to wait after the first failure, the second, and so on."""
        return map(self.pause, count(1))
