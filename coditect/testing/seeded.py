"""A clock that takes time of day, ids and random numbers from a seed and the fleet's virtual time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from uuid import UUID

from coditect.model.ids import TaskId


class SeededClock:
    """A `coditect.aio.clock.Clock` whose random numbers and ids are the same for the same seed and virtual times."""

    def __init__(self, epoch_ms: int, elapsed: Callable[[], float], random: Random) -> None:
        """Make a clock that begins at `epoch_ms`; `elapsed` returns the virtual seconds since then."""
        self._epoch_ms = epoch_ms
        self._elapsed = elapsed
        self._random = random
        self._last = 0

    def now_ms(self) -> int:
        """Return the virtual wall time in milliseconds since the Unix epoch."""
        return self._epoch_ms + round(self._elapsed() * 1000)

    def chance(self) -> float:
        """Return a random number in [0, 1)."""
        return self._random.random()

    def new_id(self) -> TaskId:
        """Return a new task id: a UUIDv7, greater than every earlier one from the same clock."""
        self._last = max(self._last + 1, self.now_ms() << 12)  # 48 bits of time, 12 that count
        moment, count = self._last >> 12, self._last & 0xFFF
        tail = (0b10 << 62) | self._random.getrandbits(62)
        return TaskId(str(UUID(int=(moment << 80) | (7 << 76) | (count << 64) | tail)))
