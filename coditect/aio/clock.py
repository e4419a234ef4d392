"""The sources of wall time, random numbers and new task ids, behind one port, so that a test can replace all three."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Protocol

import uuid_utils

from coditect.model.ids import TaskId


class Clock(Protocol):
    """A source of wall time, random numbers and new task ids."""

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""

    def chance(self) -> float:
        """Return a random number in [0, 1)."""

    def new_id(self) -> TaskId:
        """Return a new task id: a UUIDv7, unique and sorted by time."""


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The clock that reads the machine's own time and random source."""

    _random: random.Random = field(default_factory=random.SystemRandom)

    def now_ms(self) -> int:
        """Return the machine's wall time in milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def chance(self) -> float:
        """Return a random number in [0, 1)."""
        return self._random.random()

    def new_id(self) -> TaskId:
        """Return a new task id: a UUIDv7 of the machine's wall time."""
        return TaskId(str(uuid_utils.uuid7()))
