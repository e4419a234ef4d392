"""Pauses between the tries of one thing: each is twice as long as the one before, up to a bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Backoff:
    """The first and the longest pause, in seconds; a caller that wants jitter waits for a random share of a pause."""

    first: float
    longest: float

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after the given number of failures in a row, 1 or more."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 40))

    def pauses(self) -> Iterator[float]:
        """Return the pauses after the first failure, the second, and so on, without end."""
        return map(self.pause, count(1))
