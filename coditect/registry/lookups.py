"""The metrics of a process's look-ups in the registry."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from coditect.errors import RegistryUnavailable
from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import LOOKUP_SECONDS, LOOKUPS

Found = TypeVar("Found")


class Lookups:
    """The count and the durations of one process's look-ups in the registry."""

    def __init__(self, metrics: Metrics) -> None:
        self._answered = metrics.counter(LOOKUPS, outcome="answered")
        self._failed = metrics.counter(LOOKUPS, outcome="failed")
        self._seconds = metrics.histogram(LOOKUP_SECONDS)

    async def measured(self, lookup: Awaitable[Found]) -> Found:
        """Await a look-up and return its result; count it as answered, with its duration, or as failed.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        began = time.monotonic()
        try:
            found = await lookup
        except RegistryUnavailable:
            self._failed.value += 1
            raise
        self._seconds.record(time.monotonic() - began)
        self._answered.value += 1
        return found
