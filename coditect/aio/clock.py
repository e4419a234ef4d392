"""Time, chance and fresh identities come from here, so that a test can hold them still."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Protocol

import uuid_utils

from coditect.model.ids import TaskId


class Clock(Protocol):
    """Wall time, chance and identities."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""

    def chance(self) -> float:
        """A number in [0, 1)."""

    def new_id(self) -> TaskId:
        """A UUIDv7: unique, and in order of time."""


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's own time and chance."""

    _random: random.Random = field(default_factory=random.SystemRandom)

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def chance(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()

    def new_id(self) -> TaskId:
        """A UUIDv7."""
        return TaskId(str(uuid_utils.uuid7()))
