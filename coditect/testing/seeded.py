"""Time of day, ids and chance out of a seed and the fleet's virtual time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from uuid import UUID

from coditect.model.ids import TaskId


class SeededClock:
    """See `coditect.aio.clock.Clock`. The same seed gives the same chance and the same ids."""

    def __init__(self, epoch_ms: int, elapsed: Callable[[], float], random: Random) -> None:
        """`elapsed` is the virtual time since `epoch_ms`, in seconds."""
        self._epoch_ms = epoch_ms
        self._elapsed = elapsed
        self._random = random
        self._last = 0

    def now_ms(self) -> int:
        """Milliseconds since the epoch, in virtual time."""
        return self._epoch_ms + round(self._elapsed() * 1000)

    def chance(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()

    def new_id(self) -> TaskId:
        """A UUIDv7, greater than every one before it from this clock."""
        self._last = max(self._last + 1, self.now_ms() << 12)  # 48 bits of time, 12 that count
        moment, count = self._last >> 12, self._last & 0xFFF
        tail = (0b10 << 62) | self._random.getrandbits(62)
        return TaskId(str(UUID(int=(moment << 80) | (7 << 76) | (count << 64) | tail)))
