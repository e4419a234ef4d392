"""The network between a simulated process and a server: open, slow, or cut one way or both.

The in-memory twins send over it. What is sent on a way that is cut arrives when that is healed, in order, as TCP would
repeat it; whoever gave the connection up meanwhile drops it then.
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
    """Where something is sent."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


BOTH = (Way.TO_SERVER, Way.TO_CLIENT)


def _nothing() -> None:
    pass


class NetworkPath:
    """Between one process and one server; open until a fault is done to it."""

    def __init__(self, *, context: Context | None = None, changed: Callable[[], None] = _nothing) -> None:
        """What is late arrives in `context`; `changed` is called when the path was cut or healed."""
        self._context = context
        self._changed = changed
        self._latency_seconds: Callable[[], float] | None = None
        self._held: dict[Way, deque[Callable[[], object]]] = {way: deque() for way in Way}
        self._arrives = dict.fromkeys(Way, -math.inf)
        self.cut: frozenset[Way] = frozenset()
        """The ways on which nothing gets through."""

    @property
    def is_open(self) -> bool:
        """Whether all gets through at once."""
        return not self.cut and self._latency_seconds is None

    def cut_off(self, *ways: Way) -> None:
        """Let nothing through on these ways, or on both when none is named, until `heal`."""
        self.cut = frozenset(ways or BOTH)
        self._changed()

    def slow(self, latency_seconds: Callable[[], float]) -> None:
        """Let each message take so long, each way, until `heal`."""
        self._latency_seconds = latency_seconds

    def heal(self) -> None:
        """End `cut_off` and `slow`: what was held arrives now."""
        self.cut, self._latency_seconds = frozenset(), None
        self._changed()
        for held in self._held.values():
            while held:
                held.popleft()()

    def carry(self, way: Way, arrive: Callable[[], object]) -> None:
        """Call back when what is sent now is there: at once on a way that is open."""
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
        """Return when what is sent now is there."""
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.carry(way, lambda: _end(arrived))
        await arrived


def _end(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
