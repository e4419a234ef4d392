"""The simulated network between a process and a server: open, slow, or cut in one direction or both.

The in-memory twins send over this network. A message that is sent in a cut direction arrives after the heal, in order,
as TCP would repeat it; an end that gave the connection up meanwhile drops the message.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextvars import Context
from enum import Enum

LEAST_SECONDS = 1e-6
"""The least time between two arrivals, since the event loop does not order timers of one instant."""


class Way(Enum):
    """The direction of a message on a simulated network; a fault may cut one direction and leave the other."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


BOTH = (Way.TO_SERVER, Way.TO_CLIENT)


class NetworkPath:
    """The simulated network between one process and one server; open until a fault cuts or slows it."""

    def __init__(self, *, context: Context | None = None, changed: Callable[[], None] = lambda: None) -> None:
        """Make an open path; delayed messages arrive in the contextvars `context`; each cut or heal calls `changed`."""
        self._context = context
        self._changed = changed
        self._latency_seconds: Callable[[], float] | None = None
        self._held: dict[Way, deque[Callable[[], object]]] = {way: deque() for way in Way}
        self._arrives = dict.fromkeys(Way, -math.inf)
        self.cut: frozenset[Way] = frozenset()
        """The directions in which no message gets through."""

    @property
    def is_open(self) -> bool:
        """Tell whether messages get through without delay in both directions."""
        return not self.cut and self._latency_seconds is None

    def cut_off(self, *ways: Way) -> None:
        """Hold back messages sent from now on in just the given directions, by default in both, until `heal`."""
        self.cut = frozenset(ways or BOTH)
        self._changed()

    def slow(self, latency_seconds: Callable[[], float]) -> None:
        """Delay each message sent from now on, both ways, by the seconds that the function returns, until `heal`."""
        self._latency_seconds = latency_seconds

    def heal(self) -> None:
        """End `cut_off` and `slow`: messages that were held back arrive now, in order."""
        self.cut, self._latency_seconds = frozenset(), None
        self._changed()
        for held in self._held.values():
            while held:
                held.popleft()()

    def carry(self, way: Way, arrive: Callable[[], object]) -> None:
        """Send a message in a direction: call `arrive` at once on an open path, else when the message arrives."""
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
        """Wait as long as a message in the direction needs; without end while the direction is cut."""
        arrived = asyncio.Event()
        self.carry(way, arrived.set)
        await arrived.wait()
