"""Later: what was left over and took too long is tried again by itself, for it may have been the machine that was slow.

Each time it waits for twice as long as before: what always takes too long is to cost the shard little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FIRST_SECONDS = 60.0
MOST_SECONDS = 3_600.0


class Later:
    """The waiting pieces of one shard. They are taken out of what is set aside before `go_on` is called."""

    def __init__(self, aside: set[bytes], go_on: Callable[[], None]) -> None:
        self._aside = aside
        self._go_on = go_on
        self._seconds: dict[bytes, float] = {}
        self._waiting: dict[bytes, asyncio.TimerHandle] = {}

    def wait(self, piece: bytes) -> None:
        """This piece, which was set aside, is tried again after a while."""
        seconds = self._seconds.get(piece, FIRST_SECONDS)
        self._seconds[piece] = min(2 * seconds, MOST_SECONDS)
        self._waiting[piece] = asyncio.get_running_loop().call_later(seconds, self._try_again, piece)

    def _try_again(self, piece: bytes) -> None:
        del self._waiting[piece]
        self._aside.discard(piece)
        self._go_on()

    def close(self) -> None:
        """Nothing is tried again here."""
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
