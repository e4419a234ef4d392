"""The timer service of one shard, which waits for the next timer and gives due timers to the shard worker.

Time limits are held back while no report can arrive, and for a grace after that: an agent that began or ended in time
may have reported it, and the report is yet to be delivered. All other timers fire in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from coditect.broker.port import Consumer
from coditect.errors import CoditectError, Retryable
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Due
from dispatcher.ledger.timers import Timer
from dispatcher.ports import Ports
from dispatcher.shards import verbs
from dispatcher.shards.completions import Settle, Undone

log = logging.getLogger(__name__)

AGAIN_MS = 1_000
"""The pause in milliseconds before the next look for timers, after a store error or while time limits are held back."""
LATE_REPORTS_SECONDS = 3.0
"""The seconds for which time limits wait for delayed reports, once agents' reports can arrive again."""
DEAF_SECONDS = 0.3
"""The pause in seconds between two checks whether agents' reports can arrive again."""
Put = Callable[[Due, Settle], None]


class TimerService:
    """The timer service of one shard, which waits for the next timer, and passes due timers to the worker by `put`."""

    def __init__(self, shard: int, ports: Ports, put: Put) -> None:
        self._shard = shard
        self._ports = ports
        self._put = put
        self._handle: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        """The event that wakes the loop, because a timer is due or the next timer is to be read."""
        self._is_due = False
        self._closed = False
        self._consumers: Collection[Consumer] = ()
        """The consumers of agents' reports to the shard."""
        self._deaf = False
        """Whether the service waits for lost consumers of agents' reports to become active again."""
        self._held_until = math.inf
        """The instant until which time limits are held back, on the loop's clock."""
        self._next_ms = math.inf
        """The instant of the scheduled look, in milliseconds since the epoch; infinite without one."""
        self._set_ms = math.inf
        """The instant of the first timer that was set since the last reading of the store began."""
        self._paused_until = -math.inf
        """The instant before which no timer fires, on the loop's clock."""
        self._seen_ms = -1
        """The instant until which every due timer is held back or done, in milliseconds since the epoch."""

    def open(self) -> None:
        """Start the background loop that looks for the shard's due timers."""
        name = f"timers of shard {self._shard}"
        self._ports.background.keep(self._run, name=name, critical=True, until=lambda: self._closed)

    async def _run(self) -> None:
        """Give due timers to the shard worker and sleep until the next timer, until the service is closed."""
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            due, self._is_due = self._is_due, False
            try:
                await (self._put_due() if due else self._look())
            except Exception:
                self._wake.set()  # the next life of the loop looks for what this one was about to do
                raise

    def set(self, due_ms: int | None) -> None:
        """Schedule the next look for due timers at `due_ms`, replacing the scheduled one; None only cancels it."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._next_ms = math.inf
        if due_ms is not None and not self._closed:
            self._next_ms = due_ms
            seconds = max(0.0, (due_ms - self._ports.clock.now_ms()) / 1000, self._paused_until - _now())
            self._handle = asyncio.get_running_loop().call_later(seconds, self._ring)

    def set_no_later(self, due_ms: float) -> None:
        """Look for due timers at `due_ms` at the latest, because a timer was set for then."""
        self._set_ms = min(self._set_ms, due_ms)
        if due_ms < self._next_ms:
            self.set(int(due_ms))

    def look_again(self) -> None:
        """Wake the loop to read the next timer from the store, because a timer was carried out."""
        self._wake.set()

    def listen(self, consumers: Collection[Consumer]) -> None:
        """Watch the given consumers of agents' reports: no time limit fires for 3 s, nor while one of them is lost."""
        self._consumers = consumers
        self._held_until = _now() + LATE_REPORTS_SECONDS
        if not self._hears():
            self.deafened()

    def deafened(self) -> None:
        """Fire no time limits until about 3 s after all consumers of agents' reports to the shard are active again."""
        if not self._deaf:
            self._deaf = True
            name = f"consumers of shard {self._shard}"
            self._ports.background.keep(self._until_heard, name=name, critical=True, until=lambda: not self._deaf)

    async def _until_heard(self) -> None:
        self.hold()
        while not (self._hears() or self._closed):
            await asyncio.sleep(DEAF_SECONDS)
            self.hold()
        self._deaf = False

    def hold(self) -> None:
        """Fire no time limits for 3 s (`LATE_REPORTS_SECONDS`), because agents' reports could not arrive until now."""
        self._held_until = max(self._held_until, _now() + LATE_REPORTS_SECONDS)

    def close(self) -> None:
        """Stop the timer service for good, without handing over any more timers."""
        self._closed = True
        self.set(None)
        self._wake.set()

    def _holds(self) -> bool:
        """Tell whether time limits must not fire yet, because agents' reports may still be on their way."""
        if self._ports.broker.blocked or not self._hears():
            self.hold()
        return _now() < self._held_until

    def _hears(self) -> bool:
        return all(consumer.active for consumer in self._consumers)

    async def _look(self) -> None:
        self._set_ms = math.inf
        try:
            due_ms = await self._next_due_ms()
            if due_ms is not None and due_ms <= self._seen_ms and self._holds():
                again_ms = self._ports.clock.now_ms() + AGAIN_MS
                due_ms = await self._next_due_ms(after_ms=self._seen_ms)
                due_ms = again_ms if due_ms is None else min(again_ms, due_ms)
        except Retryable as error:
            self._again(error)
        else:
            self.set(_first(due_ms, self._set_ms))

    async def _next_due_ms(self, *, after_ms: int = -1) -> int | None:
        return await self._ports.database.read(lambda tr: timers.next_due_ms(tr, self._shard, after_ms=after_ms))

    def _ring(self) -> None:
        self._handle, self._next_ms = None, math.inf
        self._is_due = True
        self._wake.set()

    async def _put_due(self) -> None:
        now_ms = self._ports.clock.now_ms()
        but = verbs.HELD if self._holds() else frozenset[str]()
        try:
            due: list[Timer] = await self._ports.database.read(lambda tr: timers.due(tr, self._shard, now_ms, but=but))
        except Retryable as error:
            self._again(error)
            return
        for timer in due:
            self._put(Due(timer), partial(self._fired, timer is due[-1]))
        if not due:
            self._seen_ms = now_ms
            await self._look()

    def _fired(self, is_last: bool, answer: Any) -> None:
        """Look for the next timer after the last due one; pause before that if this one failed, as it is still due."""
        if isinstance(answer, Undone):
            return  # the shard's new owner reads the timers from the store
        if isinstance(answer, CoditectError):
            self._paused_until = _now() + AGAIN_MS / 1000
        if is_last:
            self.look_again()

    def _again(self, error: Retryable) -> None:
        """Plan another read of the timers 1 s after a failed one, and fire no time limits for 3 s."""
        self.hold()
        log.info("The timers could not be read", extra={"shard": self._shard, "reason": str(error)})
        self.set(self._ports.clock.now_ms() + AGAIN_MS)


def _first(read_ms: int | None, set_ms: float) -> int | None:
    first_ms = set_ms if read_ms is None else min(read_ms, set_ms)
    return None if first_ms == math.inf else int(first_ms)


def _now() -> float:
    return asyncio.get_running_loop().time()
