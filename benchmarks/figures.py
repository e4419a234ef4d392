"""The statistics of the report. Percentiles are nearest-rank: each is a value that was really measured."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (above 0, at most 100) per cent of the values do not exceed.

    Raises:
        ValueError: without values, or for a share outside its range.
    """
    if not values:
        raise ValueError("there are no values")
    if not 0 < share <= 100:
        raise ValueError("a share lies above 0 and at most at 100")
    rank = math.ceil(share * len(values) / 100)
    return sorted(values)[rank - 1]


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle ones when the number of values is even.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError("there are no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of ours over the median of theirs, both of the same run."""
    return median(ours) / median(theirs)


def rounded(value: float) -> float:
    """Round to four significant digits: no measurement here is better than that."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, 3 - math.floor(math.log10(abs(value))))
