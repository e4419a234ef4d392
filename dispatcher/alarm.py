"""The alarm of one shard: rings when its next timer is due, and lays the timers that are due on the desk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coditect.errors import Retryable
from dispatcher.commands import Due
from dispatcher.layers import timers
from dispatcher.layers.timers import Timer
from dispatcher.ports import Ports
from dispatcher.settling import NOTHING, Settle

log = logging.getLogger(__name__)

AGAIN_MS = 1_000
"""Before the next look, when the store did not answer."""
Put = Callable[[Due, Settle], None]


class Alarm:
    """Waits for one instant at a time. `put` lays a command on the shard's desk."""

    def __init__(self, shard: int, ports: Ports, put: Put) -> None:
        self._shard = shard
        self._ports = ports
        self._put = put
        self._handle: asyncio.TimerHandle | None = None
        self._closed = False

    def set(self, due_ms: int | None) -> None:
        """Rings at this instant and at no other; never, without one."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if due_ms is not None and not self._closed:
            seconds = max(0.0, (due_ms - self._ports.clock.now_ms()) / 1000)
            self._handle = asyncio.get_running_loop().call_later(seconds, self._ring)

    def look_again(self) -> None:
        """A timer was set, or is done: the next one may be due at another instant."""
        self._ports.background.start(self._look(), name=f"timers of shard {self._shard}")

    def close(self) -> None:
        """Never rings again."""
        self._closed = True
        self.set(None)

    async def _look(self) -> None:
        try:
            due_ms = await self._ports.database.read(lambda tr: timers.next_due_ms(tr, self._shard))
        except Retryable as error:
            self._again(error)
        else:
            self.set(due_ms)

    def _ring(self) -> None:
        self._handle = None
        self._ports.background.start(self._put_due(), name=f"timers of shard {self._shard}")

    async def _put_due(self) -> None:
        now_ms = self._ports.clock.now_ms()
        try:
            due: list[Timer] = await self._ports.database.read(lambda tr: timers.due(tr, self._shard, now_ms))
        except Retryable as error:
            self._again(error)
            return
        last = _Rung(self.look_again)
        for timer in due:
            self._put(Due(timer), last if timer is due[-1] else NOTHING)
        if not due:
            await self._look()

    def _again(self, error: Retryable) -> None:
        """The store did not tell which timer is next: perhaps one is due by then."""
        log.info("The timers could not be read", extra={"shard": self._shard, "reason": str(error)})
        self.set(self._ports.clock.now_ms() + AGAIN_MS)


@dataclass(frozen=True, slots=True)
class _Rung:
    """Looks for the next timer when the last one that was due is done."""

    look: Callable[[], None]

    def done(self, answer: Any) -> None:
        """It is."""
        self.look()

    def undone(self) -> None:
        """The shard is another's."""
