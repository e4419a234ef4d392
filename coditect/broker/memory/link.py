"""One process's connection to the in-memory broker; stands again after every loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context

from coditect.broker.memory.server import MemoryServer, Session
from coditect.errors import BrokerUnavailable, CoditectError

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.05


class MemoryConnection:
    """`restore` runs on every new connection before anybody uses it, `lost` when it breaks."""

    def __init__(
        self,
        server: MemoryServer,
        *,
        process: str,
        restore: Callable[[], None],
        lost: Callable[[], None],
        declare: Callable[[], None],
    ) -> None:
        self._server = server
        self._restore = restore
        self._lost = lost
        self._up = asyncio.Event()
        self._closed = False
        self._reachable = True
        self._context = copy_context()
        self.session = Session(closed=self._broken, process=process, declare=declare)

    @property
    def up(self) -> bool:
        """Whether the connection stands and is restored."""
        return self._up.is_set()

    def open(self) -> None:
        """Connects now, or as soon as the broker accepts it; and again after every loss."""
        self._context = copy_context()  # whoever breaks the connection, it is ours to stand again
        self._server.when_up(self._connect)

    def _connect(self) -> None:
        if self._closed or self.up:
            return
        if not self._reachable:
            self._open_later()
            return
        if not self._server.connect(self.session):
            return
        try:
            self._restore()
        except CoditectError as error:
            log.warning("The broker's entities cannot be restored yet", extra={"reason": str(error)})
            self._server.disconnect(self.session)
            self._open_later()
        else:
            self._up.set()

    def _open_later(self) -> None:
        asyncio.get_running_loop().call_later(RECONNECT_SECONDS, self.open, context=self._context)

    def drop(self) -> None:
        """Breaks the connection, as a network fault would."""
        if self.up:
            self._server.disconnect(self.session)
            self._broken()

    def cut_off(self) -> None:
        """Break the connection, and let none stand until `heal`: a partition of the network."""
        self._reachable = False
        self.drop()

    def heal(self) -> None:
        """End the partition: the connection stands again in a moment."""
        self._reachable = True

    def _broken(self) -> None:
        self._up.clear()
        self._lost()
        self._open_later()

    def close(self) -> None:
        """Ends it for good."""
        self._closed = True
        self._up.clear()
        self._server.disconnect(self.session)

    async def ready(self) -> None:
        """Waits, without limit, until the connection stands and no alarm stops it.

        Raises: BrokerUnavailable when it was closed.
        """
        while not (self.up and self.session.open.is_set()):
            await self.standing()
            await self.session.open.wait()
        self._refuse_closed()

    async def standing(self) -> None:
        """Waits, without limit, until the connection stands.

        Raises: BrokerUnavailable when it was closed.
        """
        self._refuse_closed()
        await self._up.wait()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BrokerUnavailable("The connection to the broker is closed")
