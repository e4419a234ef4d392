"""The alarm of one shard: rings when its next timer is due, and lays the timers that are due on the shard worker.

Limits of time are held while nobody can be heard, and for a grace after that: who began or ended in time may have said
so, and it is yet to be delivered. All others ring in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from coditect.broker.port import Consumer
from coditect.errors import NewerVersion, Retryable
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Due
from dispatcher.ledger.nodes import limits
from dispatcher.ledger.timers import Timer
from dispatcher.ports import Ports
from dispatcher.shards.completions import NOTHING, Settle

log = logging.getLogger(__name__)

AGAIN_MS = 1_000
"""Before the next look, when the store did not answer, or limits of time are held."""
GRACE_SECONDS = 3.0
"""From when agents can be heard until what they told before is here."""
DEAF_SECONDS = 0.3
"""Between two looks whether they can be heard again."""
Put = Callable[[Due, Settle], None]


class TimerService:
    """Waits for one instant at a time. `put` lays a command on the shard's worker."""

    def __init__(self, shard: int, ports: Ports, put: Put) -> None:
        self._shard = shard
        self._ports = ports
        self._put = put
        self._handle: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        """A timer is due, or the next one is to be looked for."""
        self._is_due = False
        self._closed = False
        self._ears: Collection[Consumer] = ()
        """By which agents are heard. What else the dispatcher consumes says nothing about them."""
        self._deaf = False
        """Whether it is looked for when they hear again."""
        self._held_until = math.inf
        """Limits of time are, on the loop's clock."""
        self._paused_until = -math.inf
        """Nothing rings before, on the loop's clock."""
        self._seen_ms = -1
        """What was due until then is held, or done."""

    def open(self) -> None:
        """Begin to look for what is due."""
        name = f"timers of shard {self._shard}"
        self._ports.background.keep(self._run, name=name, critical=True, until=lambda: self._closed)

    async def _run(self) -> None:
        """Do one thing at a time."""
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
        """Rings at this instant and at no other; never, without one."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if due_ms is not None and not self._closed:
            seconds = max(0.0, (due_ms - self._ports.clock.now_ms()) / 1000, self._paused_until - _now())
            self._handle = asyncio.get_running_loop().call_later(seconds, self._ring)

    def look_again(self) -> None:
        """A timer was set, or is done: the next one may be due at another instant."""
        self._wake.set()

    def listen(self, ears: Collection[Consumer]) -> None:
        """What agents tell comes here from now on, by these."""
        self._ears = ears
        self._held_until = _now() + GRACE_SECONDS
        if not self._hears():
            self.deafened()

    def deafened(self) -> None:
        """An ear was lost, and hears again by itself: since when, is looked for."""
        if not self._deaf:
            self._deaf = True
            name = f"ears of shard {self._shard}"
            self._ports.background.keep(self._until_heard, name=name, critical=True, until=lambda: not self._deaf)

    async def _until_heard(self) -> None:
        self.hold()
        while not (self._hears() or self._closed):
            await asyncio.sleep(DEAF_SECONDS)
            self.hold()
        self._deaf = False

    def hold(self) -> None:
        """Agents could not be heard until now."""
        self._held_until = max(self._held_until, _now() + GRACE_SECONDS)

    def close(self) -> None:
        """Never rings again."""
        self._closed = True
        self.set(None)
        self._wake.set()

    def _holds(self) -> bool:
        """Whether a limit of time may only seem to be over."""
        if self._ports.broker.blocked or not self._hears():
            self.hold()
        return _now() < self._held_until

    def _hears(self) -> bool:
        return all(ear.active for ear in self._ears)

    async def _look(self) -> None:
        try:
            due_ms = await self._next_due_ms()
            if due_ms is not None and due_ms <= self._seen_ms and self._holds():
                again_ms = self._ports.clock.now_ms() + AGAIN_MS
                due_ms = await self._next_due_ms(after_ms=self._seen_ms)
                due_ms = again_ms if due_ms is None else min(again_ms, due_ms)
        except Retryable as error:
            self._again(error)
        else:
            self.set(due_ms)

    async def _next_due_ms(self, *, after_ms: int = -1) -> int | None:
        return await self._ports.database.read(lambda tr: timers.next_due_ms(tr, self._shard, after_ms=after_ms))

    def _ring(self) -> None:
        self._handle = None
        self._is_due = True
        self._wake.set()

    async def _put_due(self) -> None:
        now_ms = self._ports.clock.now_ms()
        but = limits.TIMERS if self._holds() else frozenset[str]()
        try:
            due: list[Timer] = await self._ports.database.read(lambda tr: timers.due(tr, self._shard, now_ms, but=but))
        except Retryable as error:
            self._again(error)
            return
        last = _Rung(self.look_again, self._pause)
        for timer in due:
            self._put(Due(timer), last if timer is due[-1] else NOTHING)
        if not due:
            self._seen_ms = now_ms
            await self._look()

    def _pause(self) -> None:
        self._paused_until = _now() + AGAIN_MS / 1000

    def _again(self, error: Retryable) -> None:
        """The store did not tell which timer is next: perhaps one is due by then. Who was heard is not recorded yet."""
        self.hold()
        log.info("The timers could not be read", extra={"shard": self._shard, "reason": str(error)})
        self.set(self._ports.clock.now_ms() + AGAIN_MS)


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class _Rung:
    """Looks for the next timer when the last one that was due is done."""

    look: Callable[[], None]
    pause: Callable[[], None]

    def done(self, answer: Any) -> None:
        """It is, or is left to a newer dispatcher: it stays due, so the next one rings after a pause."""
        if isinstance(answer, NewerVersion):
            self.pause()
        self.look()

    def undone(self) -> None:
        """The shard is another's."""
