"""The network between a simulated process and a server: open, slow, or cut one way or both.

The in-memory twins send over it. What is sent on a way that is cut arrives when that is healed, in order, as TCP would
repeat it; an end that gave the connection up meanwhile drops it then.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextvars import Context
from enum import Enum

LEAST_SECONDS = 1e-6
"""Between two arrivals: the loop keeps no order among timers of one instant."""


class Way(Enum):
    """The direction of a message between a process and a server: a simulated network may break one of the two."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


BOTH = (Way.TO_SERVER, Way.TO_CLIENT)


def _nothing() -> None:
    pass


class NetworkPath:
    """The network between one process and one server; open until a fault cuts or slows it."""

    def __init__(self, *, context: Context | None = None, changed: Callable[[], None] = _nothing) -> None:
        """Make an open path; late messages arrive in `context`, `changed` is called after each cut or heal."""
        self._context = context
        self._changed = changed
        self._latency_seconds: Callable[[], float] | None = None
        self._held: dict[Way, deque[Callable[[], object]]] = {way: deque() for way in Way}
        self._arrives = dict.fromkeys(Way, -math.inf)
        self.cut: frozenset[Way] = frozenset()
        """The ways on which nothing gets through."""

    @property
    def is_open(self) -> bool:
        """Whether messages get through both ways without delay."""
        return not self.cut and self._latency_seconds is None

    def cut_off(self, *ways: Way) -> None:
        """Hold back all messages on the given ways, or on both when none is given, until `heal`."""
        self.cut = frozenset(ways or BOTH)
        self._changed()

    def slow(self, latency_seconds: Callable[[], float]) -> None:
        """Delay each message, each way, by the seconds that the function returns, until `heal`."""
        self._latency_seconds = latency_seconds

    def heal(self) -> None:
        """End `cut_off` and `slow`: messages that were held back arrive now, in order."""
        self.cut, self._latency_seconds = frozenset(), None
        self._changed()
        for held in self._held.values():
            while held:
                held.popleft()()

    def carry(self, way: Way, arrive: Callable[[], object]) -> None:
        """Send a message: call `arrive` once it is there, at once on an open way."""
        if way in self.cut or self._held[way]:
            self._held[way].append(arrive)
            return
        loop = asyncio.get_running_loop()
        latency_seconds = 0.0 if self._latency_seconds is None else self._latency_seconds()
        at = max(loop.time() + latency_seconds, self._arrives[way] + LEAST_SECONDS)
        if at <= loop.time():
            arrive()
        else:
            self._arrives[way] = at
            loop.call_at(at, arrive, context=self._context)

    async def travel(self, way: Way) -> None:
        """Wait as long as a message needs on the way; without end while the way is cut."""
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.carry(way, lambda: _end(arrived))
        await arrived


def _end(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
