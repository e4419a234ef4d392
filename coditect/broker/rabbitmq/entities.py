"""The exchanges, queues and bindings that a process declared, and declares again when the broker lost them.

A deleted exchange takes all its bindings with it, and a process that declares the exchange again has no bindings. AMQP
sends no notice of this and lists no bindings. So each process that owns a binding makes it again: after a reconnect,
when a publish comes back or finds no exchange, and every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource

from coditect.broker.rabbitmq import declare as rare
from coditect.broker.topology import Binding, Topology
from coditect.errors import CoditectError, NotFound
from coditect.model.capability import Priority
from coditect.wire import routing

log = logging.getLogger(__name__)

MEND_SECONDS = 0.5
"""The shortest time between two repeated declarations of all entities, made after publishes that found no queue."""
MAKERS = 3
"""The average number of processes that make the binding of a shared queue in a round."""
SHARED_ROUNDS = 4
"""The average number of rounds between a process's declarations of the binding of a retry-delay queue."""

Rarely = Callable[[Callable[[AbstractConnection], Awaitable[None]]], Awaitable[None]]
"""A function that makes a call on the open connection, and repeats the call after a loss of the connection."""


class Entities:
    """The exchanges, queues and bindings that one process declared at its broker."""

    def __init__(self, *, only_check: bool) -> None:
        """Start with nothing declared; if `only_check`, exchanges and shared queues are checked later, not declared.

        Private queues, those of one process or of the dispatchers, are declared all the same.
        """
        self._only_check = only_check
        self._own = Topology()
        self._common = Topology()
        self._refused: set[str] = set()
        """The exchanges and queues that the broker refused when they were last declared again."""
        self._consumers: dict[str, int] = {}
        """The number of consumers that each queue with a binding had when this process last looked at it."""
        self._mending = asyncio.Lock()
        self._mended_at = -MEND_SECONDS
        self._random = random.Random()  # noqa: S311 - who takes a turn, not a secret

    @property
    def topology(self) -> Topology:
        """The exchanges, queues and bindings that the process declares again when some are missing."""
        return self._common + self._own

    async def declare(self, connection: AbstractConnection, topology: Topology, *, lazily: bool) -> None:
        """Declare a topology and remember it for reconnects, as `Broker.declare`; with `lazily`, only remember it."""
        if lazily:
            self._common += topology
            return
        await self._make(connection, topology)
        self._own += topology.lasting

    def forget_queue(self, queue: str) -> None:
        """Forget a deleted queue and its bindings, so that a reconnect does not declare them again."""
        self._own = self._own.without({queue})
        self._common = self._common.without({queue})
        self._consumers.pop(queue, None)
        self._refused.discard(queue)

    def forget_binding(self, binding: Binding) -> None:
        """Forget a removed binding, so that a reconnect does not declare it again."""
        self._own = self._own.without_binding(binding)
        self._common = self._common.without_binding(binding)

    async def restore(self, connection: AbstractConnection) -> None:
        """Declare again, on a new connection, what the process declared before, except queues marked `once`.

        What it only remembered (`lazily`) is declared, too, if an exchange or queue turns out to be missing. An entity
        that the broker refuses, such as a queue whose node is down, is left to later rounds (`bind`).
        """
        await self._make_possible(connection, self._own)

    async def restore_queue(self, connection: AbstractConnection, queue: str) -> None:
        """Declare a queue and its bindings again if the process declared it before, and not as a queue marked `once`.

        A queue that the process only remembered (`lazily`) is not declared either.
        """
        lost = self._own.only_queue(queue)
        if lost.queues:
            await self._make(connection, lost)

    async def _make(self, connection: AbstractConnection, topology: Topology) -> None:
        try:
            await rare.declare(connection, topology, only_check=self._only_check)
        except NotFound:
            if not topology.bindings or not (self._own.exchanges or self._common.exchanges):
                raise
            await rare.declare(connection, self.topology + topology, only_check=self._only_check)

    async def _make_possible(
        self, connection: AbstractConnection, topology: Topology, channel: Channel | None = None
    ) -> None:
        """Declare a topology without the entities that the broker refuses; if one is missing, declare all others.

        Raises:
            Exception: any of `errors.LOST`, when the connection is lost.
        """
        refused: set[str] = set()
        left, whole = topology, False
        while left.exchanges or left.queues or left.bindings or channel is not None:
            try:
                await rare.declare(connection, left, only_check=self._only_check, channel=channel)
                break
            except (CoditectError, ChannelLockedResource) as error:
                name, channel = rare.entity_of(error), None
                if not whole and isinstance(error, NotFound) and self.topology.has(name):
                    left, whole = self.topology + topology, True
                elif left.mentions(name):
                    refused.add(name)
                    self._note(name, error)
                else:
                    raise
                left = left.without(refused)
        self._refused = {name for name in self._refused if name in refused or not topology.mentions(name)}

    def _note(self, name: str, error: BaseException) -> None:
        if name not in self._refused:
            self._refused.add(name)
            facts = {"entity": name, "reason": str(error)}
            log.warning("The broker refuses an exchange or queue; it is tried again alone", extra=facts)

    # -- for publishes that came back -----------------------------------------------------------------------

    def has_exchange(self, exchange: str) -> bool:
        """Tell whether the process declared the exchange, or remembered it (`lazily`) to declare when missing."""
        return any(one.name == exchange for one in (*self._common.exchanges, *self._own.exchanges))

    def binds(self, exchange: str, key: str) -> bool:
        """Tell whether the process declared a binding of the exchange with the given routing key, or with an empty key.

        A binding that it only remembered (`lazily`) does not count.
        """
        return any(one.exchange == exchange and one.key in ("", key) for one in self._own.bindings)

    async def mend(self, rarely: Rarely) -> None:
        """Declare again what this process declared, after an exchange or binding is found missing; at most every 0.5 s.

        Raises:
            Exception: any error of `declare`.
        """
        async with self._mending:
            if time.monotonic() - self._mended_at < MEND_SECONDS:
                return
            log.warning("An exchange or a binding is gone; what this process declared is made again")
            await rarely(lambda connection: self._make_possible(connection, self.topology))
            self._mended_at = time.monotonic()

    # -- every few seconds ----------------------------------------------------------------------------------

    async def bind(
        self, connection: AbstractConnection, consumers: Mapping[str, int], channel: Channel | None = None
    ) -> None:
        """Declare the process's bindings again, of queues shared with other processes only some, chosen at random.

        A repeated binding costs the broker about 0.25 ms, so processes that share a queue take turns, by chance: of up
        to three each makes a binding in every round, of more three on average. A given `channel` is closed.
        """
        bound = {one.queue for one in self._own.bindings}
        self._consumers |= {queue: count for queue, count in consumers.items() if queue in bound}
        bindings = tuple(one for one in self._own.bindings if self._random.random() < self._turn(one.queue))
        await self._make_possible(connection, Topology(bindings=bindings), channel)

    def _turn(self, queue: str) -> float:
        """Return the probability with which this process makes a queue's bindings in a round.

        The processes that share a queue without consumers are known by the consumers of its capability's task queues.
        Nobody knows how many processes share the retry-delay queues, whose publishers notice a missing binding.
        """
        if rare.is_private(queue) or queue == routing.UNROUTED_QUEUE:
            return 1.0
        if queue in self._consumers:
            return MAKERS / max(1, self._consumers[queue])
        capability = routing.capability_of(queue)
        if capability is None:
            return 1 / SHARED_ROUNDS
        queues = (routing.task_queue(capability, level) for level in Priority)
        return MAKERS / max(1, *(self._consumers.get(one, 1) for one in queues))
