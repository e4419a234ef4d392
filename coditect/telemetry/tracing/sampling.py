"""The default sampler of new traces: every trace is kept, up to a number per second."""

from __future__ import annotations

import time
from collections.abc import Callable


class NewTraces:
    """A sampler that keeps every new trace, up to a number per second (a token bucket of one second's tokens).

    What a process does in an hour can be looked at whole, and a load test costs no more than so many traces.
    """

    def __init__(self, per_second: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._now, self._most = per_second, now, max(1.0, per_second)
        self._left, self._at = self._most, now()

    def keeps(self) -> bool:
        """Take a token for a new trace; return False when none is left, so that the trace is not kept."""
        now = self._now()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
