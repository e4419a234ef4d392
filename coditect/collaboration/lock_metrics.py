"""The metrics of the locks of one process."""

from __future__ import annotations

import asyncio

from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import (
    LOCK_CONTENTIONS,
    LOCK_LONGEST,
    LOCK_TIMEOUTS,
    LOCK_WAIT,
    LOCKS_ACTIVE,
    LOCKS_WAITING,
)


class LockMetrics:
    """The metrics of the locks that one process holds or waits for; a ticket stands for one lock request."""

    def __init__(self, metrics: Metrics) -> None:
        self._waits: dict[str, float] = {}
        """The event loop's time at which each wait began."""
        self._held: set[str] = set()
        self._waited = metrics.histogram(LOCK_WAIT)
        self._contentions = metrics.counter(LOCK_CONTENTIONS)
        self._timeouts = metrics.counter(LOCK_TIMEOUTS)
        metrics.observe(LOCKS_ACTIVE, lambda: len(self._held))
        metrics.observe(LOCKS_WAITING, lambda: len(self._waits))
        metrics.observe(LOCK_LONGEST, self._longest)

    def _longest(self) -> float:
        began = next(iter(self._waits.values()), None)  # the first to begin comes first
        return 0.0 if began is None else _now() - began

    def answered(self, ticket: str, state: str) -> None:
        """Record the answer to a lock request: the lock is held, the request waits for it, or others have it."""
        if state == "held":
            self.granted(ticket)
            return
        self._contentions.value += 1
        if state == "waiting":
            self._waits.setdefault(ticket, _now())

    def granted(self, ticket: str) -> None:
        """Record that a lock is held from now on, and how long the request for it waited; idempotent."""
        if ticket in self._held:
            return
        began = self._waits.pop(ticket, None)
        self._waited.record(0.0 if began is None else _now() - began)
        self._held.add(ticket)

    def again(self, ticket: str, instead_of: str) -> None:
        """Record that a lock request waits on under a new id (ticket); its wait still counts from the beginning."""
        began = self._waits.pop(instead_of, None)
        if began is not None:
            self._waits = {ticket: began} | self._waits

    def timed_out(self) -> None:
        """Count a wait for a lock that timed out."""
        self._timeouts.value += 1

    def ended(self, ticket: str) -> None:
        """Record that a lock request neither holds its lock nor waits for it any more; idempotent."""
        self._waits.pop(ticket, None)
        self._held.discard(ticket)


def _now() -> float:
    return asyncio.get_running_loop().time()
