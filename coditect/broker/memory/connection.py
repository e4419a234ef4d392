"""A process's connection to the in-memory broker, which reconnects after every loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context

from coditect.aio.network import NetworkPath, Way
from coditect.broker.memory.server import MemoryServer, RoutedMessage, RouteVerdict, Session
from coditect.errors import BrokerUnavailable, CoditectError

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.05
NOTICED_SECONDS = 2.0
"""The time after which a process notices that no answers arrive on its open connection, as with RabbitMQ."""


class MemoryConnection:
    """A connection that reconnects by itself; `restore` runs on each new connection, `lost` on each loss.

    `restore` runs before the connection is used.
    """

    def __init__(
        self,
        server: MemoryServer,
        *,
        process: str,
        restore: Callable[[], None],
        lost: Callable[[], None],
        declare: Callable[[], None],
    ) -> None:
        self.server = server
        self._restore = restore
        self._lost = lost
        self._up = asyncio.Event()
        self._closed = False
        self.path = NetworkPath(context=server.context, changed=self._cut_or_healed)
        """The simulated network path; a cut both ways breaks the connection at once, one way leaves it open."""
        self.silent = False
        """Whether the process has noticed that no answers arrive."""
        self._noticing: asyncio.TimerHandle | None = None
        self._losses = 0
        self._context = copy_context()
        self.session = Session(closed=self._broken, process=process, declare=declare)

    @property
    def up(self) -> bool:
        """Tell whether the connection is open and restored."""
        return self._up.is_set()

    def open(self) -> None:
        """Connect now, or as soon as the broker accepts connections."""
        self._context = copy_context()  # whoever breaks the connection, it is ours to stand again
        self.server.when_up(self._connect)

    def _connect(self) -> None:
        if self._closed or self.up:
            return
        if self.path.cut:
            self._open_later()
            return
        if not self.server.connect(self.session):
            return
        try:
            self._restore()
        except CoditectError as error:
            log.warning("The broker's entities cannot be restored yet", extra={"reason": str(error)})
            self.server.disconnect(self.session)
            self._open_later()
        else:
            self._up.set()

    def _open_later(self) -> None:
        asyncio.get_running_loop().call_later(RECONNECT_SECONDS, self.open, context=self._context)

    def drop(self) -> None:
        """Break the connection, as a network fault would, and reconnect."""
        if self.up:
            self.server.disconnect(self.session)
            self._broken()

    def _cut_or_healed(self) -> None:
        if self._noticing is not None:
            self._noticing.cancel()
        self.silent = len(self.path.cut) == len(Way)
        if self.silent:
            self.drop()
        elif self.path.cut:
            loop = asyncio.get_running_loop()
            self._noticing = loop.call_later(NOTICED_SECONDS, self._notice, context=self._context)

    def _notice(self) -> None:
        self.silent = True

    def _broken(self) -> None:
        self._losses += 1
        self._up.clear()
        self._lost()
        self._open_later()

    def close(self) -> None:
        """Close the connection for good, without reconnecting."""
        self._closed = True
        self._up.clear()
        self.server.disconnect(self.session)

    async def offer(self, publication: RoutedMessage) -> RouteVerdict:
        """Publish a message, and return the broker's answer; LOST when the connection broke before the answer.

        Raises:
            NotFound, SetupError, InvalidTask: as `MemoryServer.offer`.
        """
        losses = self._losses
        await self.path.travel(Way.TO_SERVER)
        if losses != self._losses:
            return RouteVerdict.LOST
        verdict = await asyncio.shield(self.server.offer(self.session, publication))
        await self.path.travel(Way.TO_CLIENT)
        return verdict if losses == self._losses else RouteVerdict.LOST

    async def answered(self) -> None:
        """Wait without limit until the connection is open and a message could reach the broker and come back.

        Raises:
            BrokerUnavailable: when the connection was closed for good.
        """
        await self.opened()
        for way in Way:
            await self.path.travel(way)
        await self.opened()

    async def ready(self) -> None:
        """Wait without limit until the connection is open and no alarm stops publishes.

        Raises:
            BrokerUnavailable: when the connection was closed for good.
        """
        while not (self.up and self.session.open.is_set()):
            await self.opened()
            await self.session.open.wait()
        self._refuse_closed()

    async def opened(self) -> None:
        """Wait without limit until the connection is open.

        Raises:
            BrokerUnavailable: when the connection was closed for good.
        """
        self._refuse_closed()
        await self._up.wait()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BrokerUnavailable("The connection to the broker is closed")
