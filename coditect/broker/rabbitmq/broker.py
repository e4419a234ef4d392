"""The RabbitMQ implementation of the interface `Broker`, with one connection to publish and one to consume.

A connection that the broker blocks (an alarm) stalls its consumers, too; hence two connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from aiormq.abc import AbstractConnection

from coditect.aio.cancellation import heeded
from coditect.aio.supervisor import Health, Supervisor
from coditect.broker.port import (
    Consumer,
    Delivery,
    OnDelivery,
    Promise,
    QueueStats,
    ServerInfo,
    connection_names,
)
from coditect.broker.rabbitmq import declare as rare
from coditect.broker.rabbitmq.browsing import CALL_SECONDS, Browsing
from coditect.broker.rabbitmq.connection.recovery import RabbitConnection
from coditect.broker.rabbitmq.consuming.consumer import ANSWER_SECONDS, Group, Subscription
from coditect.broker.rabbitmq.consuming.watch import watch_consumers
from coditect.broker.rabbitmq.entities import Entities
from coditect.broker.rabbitmq.errors import LOST, canceled_by_us, unreachable
from coditect.broker.rabbitmq.frames.path import DirectPath, is_tested
from coditect.broker.rabbitmq.plain import PlainPath
from coditect.broker.rabbitmq.publishing.publisher import Publisher
from coditect.broker.topology import Binding, Exchange, Queue, Topology
from coditect.broker.topology_diff import Probe
from coditect.errors import TopologyMismatch
from coditect.model.message import Message
from coditect.wire import routing

log = logging.getLogger(__name__)

DIRECT, PLAIN = "direct", "plain"
WATCH_SECONDS = 4.0
"""The time between two rounds that check all consumers and bindings, so that a lost one is found within 5 s."""
T = TypeVar("T")


class AmqpBroker:
    """The RabbitMQ implementation of the interface `Broker`, for RabbitMQ 3.10 or newer.

    `url` may name several hosts, separated by commas. `name` is the process's name in the broker's connection list,
    by which the process is evicted: an agent's id, a dispatcher's owner name. With `quorum` all queues are quorum
    queues, as they must be in a cluster: a classic queue is gone for as long as its node is.
    """

    def __init__(  # noqa: PLR0913 - each is a fact of its own, and has a default
        self,
        url: str,
        *,
        name: str = "coditect",
        window: int = 500,
        declare: bool = True,
        quorum: bool = False,
        connect_seconds: float = 10.0,
        watch_seconds: float = WATCH_SECONDS,
        wire: str = DIRECT,
        heartbeat_seconds: int | None = None,
    ) -> None:
        self.health = Health()
        """The health of the broker's background loops."""
        self._background = Supervisor(self.health)
        self._connect_seconds = connect_seconds
        self._watch_seconds = watch_seconds
        self._looks = rare.Looks()
        self._quorum = quorum
        self._entities = Entities(only_check=not declare)
        self._groups: dict[str, Group] = {}
        self._check: Callable[[], Awaitable[None]] | None = None
        self.wire = DIRECT if wire == DIRECT and is_tested() else PLAIN
        """The name of the wire path in use: direct or plain."""
        new_path = DirectPath if self.wire == DIRECT else PlainPath
        publishes, consumes = connection_names(name)
        connect = partial(RabbitConnection, url, heartbeat_seconds=heartbeat_seconds)
        self._outgoing = connect(name=publishes, path=new_path(), restore=self._restore_outgoing)
        self._incoming = connect(name=consumes, path=new_path(), restore=self._restore_incoming)
        self._publisher = Publisher(self._outgoing, self._background, window=window, ways=self)
        self._browsing = Browsing(self._background)

    async def __aenter__(self) -> Self:
        self._publisher.open()
        keep = partial(self._background.keep, critical=True)
        keep(self._incoming.run, name="incoming connection")
        keep(self._outgoing.run, name="outgoing connection")
        try:
            await self._incoming.first(self._connect_seconds)
            await self._outgoing.first(self._connect_seconds)
        except BaseException:
            await self._background.close()
            raise
        watch = partial(watch_consumers, self._groups, self._look_at, self._end_round, seconds=self._watch_seconds)
        keep(watch, name="watch consumers")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()
        await asyncio.gather(*(group.close() for group in self._groups.values()))
        self._publisher.close()
        await self._background.close()

    @property
    def server(self) -> ServerInfo:
        """The product, version and TLS certificate's expiry of the broker that answered last."""
        return self._incoming.server

    @property
    def connected(self) -> bool:
        """Tell whether both connections are open, the broker answers on them, and every reachable queue is consumed."""
        both = self._incoming.up and self._outgoing.up
        return both and all(one.active or one.away for group in self._groups.values() for one in group.subscriptions)

    @property
    def answering(self) -> bool:
        """Tell whether the broker answers on the consuming connection, as `Broker.answering`."""
        return self._incoming.answering

    @property
    def blocked(self) -> bool:
        """Tell whether a publish waits now because of the broker's alarm, or because the broker reads slowly."""
        return self._publisher.blocked

    async def _restore_outgoing(self, connection: AbstractConnection) -> None:
        """Redeclare on a new connection what this process declared, then call the function that `on_reconnect` has set.

        What was given to `declare` with `lazily` is redeclared only if an exchange or queue is missing.
        """
        await self._entities.restore(connection)
        if self._check is not None:
            await self._check()

    async def _restore_incoming(self, connection: AbstractConnection) -> None:
        """Redeclare as `_restore_outgoing` does, and restore the groups of consumers, slow ones in the background."""
        await self._entities.restore(connection)
        restoring = [
            self._background.start(group.restore(connection), name=f"restore {name}")
            for name, group in self._groups.items()
        ]
        if restoring:
            await asyncio.wait(restoring, timeout=ANSWER_SECONDS)

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        """Declare exchanges, queues and bindings; if `lazily`, only remember them until some are missing.

        A broker that was made with `declare=False` declares only private queues, and checks that all else exists. One
        that was made with `quorum=True` leaves a queue classic that was declared before without it.
        """
        wanted = topology.replicated if self._quorum else topology
        while True:
            try:
                await self._rarely(partial(self._entities.declare, topology=wanted, lazily=lazily))
                return
            except TopologyMismatch as error:
                name = rare.entity_of(error)
                pairs = zip(topology.queues, wanted.queues, strict=True)
                queues = tuple(plain if plain.name == name else replicated for plain, replicated in pairs)
                if queues == wanted.queues:
                    raise
                log.warning("A queue is classic, and stays so until it is deleted", extra={"queue": name})
                wanted = replace(wanted, queues=queues)

    def on_reconnect(self, check: Callable[[], Awaitable[None]]) -> None:
        """Set the one function that runs on each new connection before any publish, as `Broker.on_reconnect`."""
        self._check = check

    async def leads(self, exchange: str, routing_key: str, *, exists: bool) -> bool:
        """Redeclare the exchange or binding that a publish lacked if this process declared it; return whether to retry.

        All else that the process declared is redeclared, too. True also for the missing binding of a queue that exists,
        which its owner declares again.
        """
        if not exists:
            ours = self._entities.has_exchange(exchange)
        elif not (ours := self._entities.binds(exchange, routing_key)):
            queue = routing.queue_for(exchange, routing_key)
            return queue is not None and await self.stats(queue) is not None
        if ours:
            await self._entities.mend(self._rarely)
        return ours

    def publish(
        self,
        message: Message,
        *,
        exchange: str,
        routing_key: str,
        timeout_seconds: float = 30.0,
        wait_when_full: bool = True,
    ) -> Awaitable[None]:
        """Publish a message and return an awaitable of the confirm, as `Broker.publish`."""
        return self._publisher.publish(
            message,
            exchange=exchange,
            routing_key=routing_key,
            timeout_seconds=timeout_seconds,
            wait_when_full=wait_when_full,
        )

    def post(
        self,
        message: Message,
        promise: Promise,
        *,
        exchange: str,
        routing_key: str,
        timeout_seconds: float = 30.0,
        wait_when_full: bool = True,
    ) -> None:
        """Publish a message, and set the outcome on `promise`, such as a future, as `Broker.post`."""
        self._publisher.post(
            message,
            promise,
            exchange=exchange,
            routing_key=routing_key,
            timeout_seconds=timeout_seconds,
            wait_when_full=wait_when_full,
        )

    async def consume(
        self,
        queue: str,
        on_delivery: OnDelivery,
        *,
        prefetch: int,
        group: str = "",
        on_lost: Callable[[], None] | None = None,
        exclusive: bool = False,
    ) -> Consumer:
        """Consume a queue on the channel that all consumers of the same `group` share, as `Broker.consume`."""
        shared = self._groups.get(group)
        if shared is None:
            shared = self._groups[group] = Group(
                group, self._background, path=self._incoming.path, declare_again=self._entities.restore_queue
            )
        subscription = Subscription(shared, queue, on_delivery, prefetch=prefetch, on_lost=on_lost, exclusive=exclusive)

        async def subscribe(connection: AbstractConnection) -> None:
            if not shared.opened:
                await shared.restore(connection)
            await shared.subscribe(subscription)

        await self._rarely(subscribe)
        return subscription

    async def get(self, queue: str) -> Delivery | None:
        """Fetch one message of a queue for inspection, as `Broker.get`; None when the queue is empty."""
        return await self._rarely(lambda connection: self._browsing.get(connection, queue))

    async def release(self) -> None:
        """Put all unsettled messages that `get` fetched back into their queues."""
        await self._browsing.release()

    async def stats(self, queue: str) -> QueueStats | None:
        """Return a queue's number of ready messages and number of consumers; None when the queue does not exist."""
        return await self._rarely(lambda connection: rare.stats(connection, queue))

    async def _look_at(self, queue: str) -> QueueStats | None:
        return await self._rarely(lambda connection: self._looks.stats(connection, queue))

    async def _end_round(self) -> None:
        """End one round of checks of the consumers, and redeclare bindings, of shared queues only some, at random."""
        channel, consumers = self._looks.end()
        await self._rarely(lambda connection: self._entities.bind(connection, consumers, channel))

    async def probe(self, entity: Exchange | Queue) -> Probe:
        """Return whether the broker's exchange or queue is as wanted, missing or different; change nothing."""
        return await self._rarely(lambda connection: rare.probe(connection, entity))

    async def unbind(self, binding: Binding) -> None:
        """Remove a binding, and do not declare it again, as `Broker.unbind`."""
        self._entities.forget_binding(binding)
        await self._rarely(lambda connection: rare.unbind(connection, binding))

    async def delete_queue(self, queue: str, *, if_empty: bool = False, classic: bool = False) -> None:
        """Delete a queue, as `Broker.delete_queue`; without `if_empty`, reconnects no longer declare the queue."""
        classic = classic and not self._quorum
        await self._rarely(lambda connection: rare.delete_queue(connection, queue, if_empty=if_empty, classic=classic))
        if not if_empty:
            self._entities.forget_queue(queue)

    def drop(self) -> None:
        """Cut both connections, as a network fault would, for tests."""
        self._incoming.abort()
        self._outgoing.abort()

    async def _rarely(self, call: Callable[[AbstractConnection], Awaitable[T]]) -> T:
        """Make a call, such as a declaration, on the consuming connection; repeat it after a loss, for 15 s in all.

        Raises:
            BrokerUnavailable: when the call did not succeed within `CALL_SECONDS`; retryable.
        """
        last: BaseException | None = None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                while True:
                    connection = await self._incoming.connection()
                    try:
                        with heeded():
                            return await call(connection)
                    except asyncio.CancelledError as error:
                        if canceled_by_us():
                            raise
                        last = error
                    except LOST as error:
                        last = error
                    await asyncio.sleep(0.05)
        except (TimeoutError, ConnectionError) as error:
            raise unreachable(self._incoming.address, last or self._incoming.last_error or error) from error
