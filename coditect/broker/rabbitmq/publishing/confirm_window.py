"""A limit of publishes under way, as asyncio's semaphore, but with an entry that needs no coroutine."""

from __future__ import annotations

import asyncio
from collections import deque


class ConfirmWindow:
    """A window of `size` places; waiting callers get the places that become free, in order."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter_at_once(self) -> bool:
        """Take a place if one is free and no caller waits for it; return whether it was taken."""
        if self._free <= 0 or self._waiting:
            return False
        self._free -= 1
        return True

    async def enter(self) -> None:
        """Wait for a place and take it."""
        if self.enter_at_once():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Free a place of the window, which the caller that waits longest gets."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
