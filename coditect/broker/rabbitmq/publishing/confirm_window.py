"""A limit of unconfirmed publishes: a semaphore that can also be taken at once, without a coroutine."""

from __future__ import annotations

import asyncio
from collections import deque


class ConfirmWindow:
    """A window of `size` places for unconfirmed publishes; waiting callers get free places in order."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter_at_once(self) -> bool:
        """Take a place in the window if one is free and no other caller waits; return whether a place was taken."""
        if self._free <= 0 or self._waiting:
            return False
        self._free -= 1
        return True

    async def enter(self) -> None:
        """Wait for a free place in the window, and take it."""
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
        """Free a place of the window, or give it to the caller that has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
