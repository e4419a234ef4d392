"""Later: what was left over and took too long is tried again by itself, for it may have been the machine that was slow.

Each time it waits for twice as long as before: what always takes too long is to cost the shard little. What was tried
again and did not come back within an hour begins anew: that is another slow spell.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.ledger.workflows.continuations import SetAside

log = logging.getLogger(__name__)

FIRST_SECONDS = 60.0
MOST_SECONDS = 3_600.0


@dataclass(frozen=True, slots=True)
class Waited:
    """A wait that is over, or will be."""

    seconds: float
    until: float

    def counts(self, now: float) -> bool:
        """Whether one that begins now follows it."""
        return now <= self.until + MOST_SECONDS


class ContinuationBackoff:
    """The pieces of one shard that are not gone on with: for ever, or until `go_on` is called."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self.aside: set[bytes] = set()
        """Their keys. All of them are tried again by whoever opens the shard next."""
        self._go_on = go_on
        self._last: dict[bytes, Waited] = {}
        self._waiting: dict[bytes, asyncio.TimerHandle] = {}

    def set_aside(self, error: SetAside) -> None:
        """Sets this piece aside; one that took too long is tried again after a while."""
        log.error("What was left over cannot be done; it is set aside", exc_info=error.__cause__, extra=error.facts)
        self.aside.add(error.piece)
        if error.overdue:
            self._wait(error.piece)

    def _wait(self, piece: bytes) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._last = {one: waited for one, waited in self._last.items() if waited.counts(now)}
        last = self._last.get(piece)
        seconds = FIRST_SECONDS if last is None else min(2 * last.seconds, MOST_SECONDS)
        self._last[piece] = Waited(seconds, now + seconds)
        self._waiting[piece] = loop.call_later(seconds, self._try_again, piece)

    def _try_again(self, piece: bytes) -> None:
        del self._waiting[piece]
        self.aside.discard(piece)
        self._go_on()

    def close(self) -> None:
        """Nothing is tried again here."""
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
