"""Durations as people write them: ``"250ms"``, ``"30s"``, ``"5m"``, ``"2h"``, ``"2d"``, or a number of seconds."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import lru_cache

from coditect.errors import InputError

Duration = str | int | float | timedelta
"""The type of a time span in public parameters: a text such as `"30s"`, or a number of seconds."""

NO_DURATION = "A duration needs a number and a unit: 250ms, 30s, 5m, 2h or 2d"

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def seconds(duration: Duration) -> float:
    """Convert a duration (a text such as `30s`, a number of seconds, or a timedelta) to a number of seconds.

    Raises:
        InputError: for a negative span, a text without a unit, and a value that is no duration.
    """
    if isinstance(duration, float):
        value = duration
    elif isinstance(duration, str):
        value = _parse(duration)
    elif isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, int) and not isinstance(duration, bool):
        value = _as_float(duration)
    else:
        raise InputError(NO_DURATION, given=type(duration).__name__)
    if not 0 <= value < float("inf"):
        raise InputError("A duration is zero or more seconds", given=duration)
    return value


def _as_float(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")


@lru_cache(maxsize=256)  # a client reads one and the same with each task that it submits
def _parse(text: str) -> float:
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise InputError(NO_DURATION, given=text[:120])
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def milliseconds(duration: Duration) -> int:
    """Convert a duration to whole milliseconds, rounded; refuse one that would be 0.

    Raises:
        InputError: when `seconds` raises it, and for less than one millisecond.
    """
    if (whole := round(seconds(duration) * 1000)) < 1:
        raise InputError("A duration is at least 1ms here", given=duration)
    return whole


def duration_text(whole_ms: int) -> str:
    """Write a number of milliseconds as a duration text, in the largest unit that needs no fraction."""
    for unit in ("d", "h", "m", "s"):
        count, remainder = divmod(whole_ms, round(_UNIT_SECONDS[unit] * 1000))
        if count and not remainder:
            return f"{count}{unit}"
    return f"{whole_ms}ms"
