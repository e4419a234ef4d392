"""The backoff of left-over work that took too long, perhaps only because the machine was slow.

Each retry waits twice as long as the one before, so that a piece of work that always takes too long costs the shard
little. A piece that succeeds and is not set aside again within an hour begins with the first wait: that is another slow
spell.
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
    """The wait before the last retry of a piece of work; in seconds, `until` on the loop's clock."""

    seconds: float
    until: float

    def counts(self, now: float) -> bool:
        """Return whether a wait that begins at `now` continues the series, and so is a longer one."""
        return now <= self.until + MOST_SECONDS


class ContinuationBackoff:
    """The left-over pieces of one shard's work that are set aside, for ever or until a retry."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self.aside: set[bytes] = set()
        """The keys of the pieces; the next owner of the shard tries all of them again."""
        self._go_on = go_on
        self._last: dict[bytes, Waited] = {}
        self._waiting: dict[bytes, asyncio.TimerHandle] = {}

    def set_aside(self, error: SetAside) -> None:
        """Set a piece aside, and plan a retry if it took too long."""
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
        """Cancel the retries of all pieces that are set aside."""
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
