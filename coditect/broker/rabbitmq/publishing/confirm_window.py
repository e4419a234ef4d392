"""A limit of unconfirmed publishes: a semaphore that can also be taken at once, without a coroutine."""

from __future__ import annotations

import asyncio
from collections import deque


class ConfirmWindow:
    """A limit of `size` unconfirmed publishes at once: a semaphore that serves its waiting callers in order."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter_at_once(self) -> bool:
        """Count one more unconfirmed publish if the limit allows that and no caller waits; return whether counted."""
        if self._free <= 0 or self._waiting:
            return False
        self._free -= 1
        return True

    async def enter(self) -> None:
        """Wait until the limit allows one more unconfirmed publish, and count it."""
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
        """Count one unconfirmed publish less, or admit the caller that has waited longest in its stead."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
