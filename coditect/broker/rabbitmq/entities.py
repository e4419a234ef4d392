"""What a process declared, and makes again when the broker lost it.

An exchange that is deleted takes all bindings with it, and whoever makes it again makes it without them. AMQP tells
nobody and lists no bindings. So each process that owns a binding makes it again: when its connection stands again, when
a publish comes back or finds no exchange, and every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from coditect.broker.rabbitmq import declare as rare
from coditect.broker.topology import Topology
from coditect.errors import NotFound

log = logging.getLogger(__name__)

MEND_SECONDS = 0.5
"""The least time between two repairs for publishes that came back."""
SHARED_ROUNDS = 4
"""What nobody consumes is bound again by every process that declared it, each once in so many rounds on average."""

Rarely = Callable[[Callable[[AbstractConnection], Awaitable[None]]], Awaitable[None]]
"""Makes a call on a standing connection."""


class Entities:
    """The topology of one process, at one broker."""

    def __init__(self, *, only_check: bool) -> None:
        """With `only_check` it makes but queues of its own."""
        self._only_check = only_check
        self._own = Topology()
        self._common = Topology()
        self._mending = asyncio.Lock()
        self._mended_at = -MEND_SECONDS
        self._random = random.Random()  # noqa: S311 - who takes a turn, not a secret

    @property
    def topology(self) -> Topology:
        """All that is to be there."""
        return self._common + self._own

    async def declare(self, connection: AbstractConnection, topology: Topology, *, lazily: bool) -> None:
        """See `Broker.declare`."""
        if lazily:
            self._common += topology
            return
        await self._make(connection, topology)
        self._own += topology.lasting

    def forget_queue(self, queue: str) -> None:
        """It was deleted on purpose."""
        self._own = self._own.without_queue(queue)
        self._common = self._common.without_queue(queue)

    async def restore(self, connection: AbstractConnection) -> None:
        """Makes what was declared; what is common to all only when it is found missing."""
        if self._own.exchanges or self._own.queues:
            await self._make(connection, self._own)

    async def restore_queue(self, connection: AbstractConnection, queue: str) -> None:
        """The same of one queue and its bindings, if it is one of ours."""
        lost = self._own.only_queue(queue)
        if lost.queues:
            await self._make(connection, lost)

    async def _make(self, connection: AbstractConnection, topology: Topology, channel: Channel | None = None) -> None:
        try:
            await rare.declare(connection, topology, only_check=self._only_check, channel=channel)
        except NotFound:
            if not topology.bindings or not (self._own.exchanges or self._common.exchanges):
                raise
            await rare.declare(connection, self.topology + topology, only_check=self._only_check)

    # -- for publishes that came back -----------------------------------------------------------------------

    def has_exchange(self, exchange: str) -> bool:
        """Whether this process declared it."""
        return any(one.name == exchange for one in (*self._common.exchanges, *self._own.exchanges))

    def binds(self, exchange: str, key: str) -> bool:
        """Whether this process has a binding by which this key leads somewhere."""
        return any(one.exchange == exchange and one.key in ("", key) for one in self._own.bindings)

    async def mend(self, rarely: Rarely) -> None:
        """Makes everything again. Many who ask at the same time share one repair. Raises what `declare` raises."""
        async with self._mending:
            if time.monotonic() - self._mended_at < MEND_SECONDS:
                return
            log.warning("An exchange or a binding is gone; what this process declared is made again")
            await rarely(lambda link: rare.declare(link, self.topology, only_check=self._only_check))
            self._mended_at = time.monotonic()

    # -- every few seconds ----------------------------------------------------------------------------------

    async def bind(
        self, connection: AbstractConnection, consumers: Mapping[str, int], channel: Channel | None = None
    ) -> None:
        """Binds again what may be unbound; `consumers` says of queues how many share them. Closes the channel.

        To bind what is bound costs the broker about 0.25 ms, so those who share a queue take turns, by chance: each
        binding is made about twice a round, however many they are.
        """
        bindings = tuple(one for one in self._own.bindings if self._random.random() < self._turn(one.queue, consumers))
        await self._make(connection, Topology(bindings=bindings), channel)

    def _turn(self, queue: str, consumers: Mapping[str, int]) -> float:
        if rare.is_private(queue):
            return 1.0
        shared_by = consumers.get(queue)
        return 1 / SHARED_ROUNDS if shared_by is None else 2 / max(1, shared_by)
