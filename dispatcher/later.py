"""Later: what was left over and took too long is tried again by itself, for it may have been the machine that was slow.

Each time it waits for twice as long as before: what always takes too long is to cost the shard little. What was tried
again and did not come back within an hour begins anew: that is another slow spell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

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


class Later:
    """The waiting pieces of one shard. They are taken out of what is set aside before `go_on` is called."""

    def __init__(self, aside: set[bytes], go_on: Callable[[], None]) -> None:
        self._aside = aside
        self._go_on = go_on
        self._last: dict[bytes, Waited] = {}
        self._waiting: dict[bytes, asyncio.TimerHandle] = {}

    def wait(self, piece: bytes) -> None:
        """This piece, which was set aside, is tried again after a while."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._last = {one: waited for one, waited in self._last.items() if waited.counts(now)}
        last = self._last.get(piece)
        seconds = FIRST_SECONDS if last is None else min(2 * last.seconds, MOST_SECONDS)
        self._last[piece] = Waited(seconds, now + seconds)
        self._waiting[piece] = loop.call_later(seconds, self._try_again, piece)

    def _try_again(self, piece: bytes) -> None:
        del self._waiting[piece]
        self._aside.discard(piece)
        self._go_on()

    def close(self) -> None:
        """Nothing is tried again here."""
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
