"""The RabbitMQ implementation of the interface `Broker`, with one connection to publish and one to consume.

A connection that the broker blocks (an alarm) stalls its consumers, too; hence two connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Concatenate, ParamSpec, Self, TypeVar

from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from coditect.aio.supervisor import Health, Supervisor, heeded
from coditect.broker.port import (
    Consumer,
    Delivery,
    OnDelivery,
    Probe,
    QueueStats,
    ServerInfo,
    connection_names,
)
from coditect.broker.rabbitmq import declare as entities
from coditect.broker.rabbitmq.channels import LOST, canceled_by_us, close_quietly, tolerating_loss, unreachable
from coditect.broker.rabbitmq.connection import RabbitConnection, Restore
from coditect.broker.rabbitmq.consumer_channel import AmqpDelivery, ConsumerChannel, Source
from coditect.broker.rabbitmq.consuming import QUEUE_ANSWER_SECONDS, Group, Subscription, watch_consumers
from coditect.broker.rabbitmq.publishing import Publisher
from coditect.broker.rabbitmq.stream import packed
from coditect.broker.topology import Binding, Exchange, Queue, Topology
from coditect.errors import NotFound, TopologyMismatch
from coditect.wire import routing

log = logging.getLogger(__name__)

BROKER_CALL_SECONDS = 15.0
PUBLISH_WINDOW = 500
"""How many unconfirmed publishes a process may have at once."""
WATCH_SECONDS = 4.0
"""The time between two rounds that check all consumers and bindings, so that a lost one is found within 5 s."""
T = TypeVar("T")
P = ParamSpec("P")

Connect = Callable[[str, Restore], RabbitConnection]
"""A factory of connections, from a connection's name and the function that restores what was on it."""


class AmqpBroker:
    """The RabbitMQ implementation of the interface `Broker`, for RabbitMQ 3.10 or newer.

    `url` may name several hosts, separated by commas. `name` is the process's name in the broker's connection list,
    by which the process is evicted: an agent's id, a dispatcher's owner name. With `quorum` all queues are quorum
    queues, as they must be in a cluster: a classic queue is gone for as long as its node is. `connect` makes the two
    connections in place of new ones to the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "coditect",
        window: int = PUBLISH_WINDOW,
        declare: bool = True,
        quorum: bool = False,
        connect_seconds: float = 10.0,
        watch_seconds: float = WATCH_SECONDS,
        connect: Connect | None = None,
    ) -> None:
        self.health = Health()
        """The health of the broker's background loops."""
        self._background = Supervisor(self.health)
        self._connect_seconds = connect_seconds
        self._watch_seconds = watch_seconds
        self._stats_reader = entities.StatsReader()
        self._quorum = quorum
        self._entities = entities.Entities(only_check=not declare)
        self._groups: dict[str, Group] = {}
        self._check: Callable[[], Awaitable[None]] | None = None

        connect = connect or (lambda name, restore: RabbitConnection(url, name=name, restore=restore))
        publishes, consumes = connection_names(name)
        self._outgoing = connect(publishes, self._restore_outgoing)
        self._incoming = connect(consumes, self._restore_incoming)
        self._publisher = Publisher(self._outgoing, self._background, window=window, restore_route=self._restore_route)
        self.publish = self._publisher.publish
        """Publish a message and return an awaitable of the confirm, as `Broker.publish`."""
        self.post = self._publisher.post
        """Publish a message, and set the outcome on `promise`, such as a future, as `Broker.post`."""
        self._browsing = Browsing(self._incoming, self._background)

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
        watch = partial(watch_consumers, self._groups, self._queue_stats, self._end_round, seconds=self._watch_seconds)
        keep(watch, name="watch consumers")
        return self

    async def __aexit__(self, *_: object) -> None:
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
        held = (subscription for group in self._groups.values() for subscription in group.subscriptions)
        return self._incoming.up and self._outgoing.up and all(consumer.active or consumer.away for consumer in held)

    @property
    def answering(self) -> bool:
        """Tell whether the broker answers on the consuming connection, as `Broker.answering`."""
        return self._incoming.answering

    @property
    def blocked(self) -> bool:
        """Tell whether the broker holds up publishes: it has an alarm, or reads more slowly than they are written."""
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
            await asyncio.wait(restoring, timeout=QUEUE_ANSWER_SECONDS)

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        """Declare exchanges, queues and bindings; if `lazily`, only remember them until some are missing.

        A broker that was made with `declare=False` declares only private queues, and checks that all else exists. One
        that was made with `quorum=True` leaves a queue classic that was declared before without it.
        """
        wanted = topology.replicated if self._quorum else topology
        while True:
            try:
                await self._rarely(self._entities.declare, wanted, lazily=lazily)
                return
            except TopologyMismatch as error:
                name = entities.entity_of(error)
                pairs = zip(topology.queues, wanted.queues, strict=True)
                queues = tuple(plain if plain.name == name else replicated for plain, replicated in pairs)
                if queues == wanted.queues:
                    raise
                log.warning("A queue is classic, and stays so until it is deleted", extra={"queue": name})
                wanted = replace(wanted, queues=queues)

    def on_reconnect(self, check: Callable[[], Awaitable[None]]) -> None:
        """Set the one function that runs on each new connection before any publish, as `Broker.on_reconnect`."""
        self._check = check

    async def _restore_route(self, exchange: str, routing_key: str, exists: bool) -> bool:
        """Redeclare the exchange or binding that a publish lacked if this process declared it; return whether to retry.

        All else that the process declared is redeclared, too. True also for the missing binding of a queue that exists,
        which its owner declares again.
        """
        if not exists:
            ours = self._entities.topology.has_exchange(exchange)
        elif not (ours := self._entities.own.binds(exchange, routing_key)):
            queue = routing.queue_for(exchange, routing_key)
            return queue is not None and await self.stats(queue) is not None
        if ours:
            await self._entities.mend(self._rarely)
        return ours

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
            declare_again = self._entities.restore_queue
            shared = Group(
                group, self._background, rabbit=self._incoming, declare_again=declare_again, groups=self._groups
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
        return await self._rarely(self._browsing.get, queue)

    async def release(self) -> None:
        """Put all unsettled messages that `get` fetched back into their queues."""
        await self._browsing.release()

    async def stats(self, queue: str) -> QueueStats | None:
        """Return a queue's number of ready messages and number of consumers; None when the queue does not exist."""
        return await self._rarely(entities.stats, queue)

    async def _queue_stats(self, queue: str) -> QueueStats | None:
        return await self._rarely(self._stats_reader.stats, queue)

    async def _end_round(self) -> None:
        """End one round of checks of the consumers, and redeclare bindings, of shared queues only some, at random."""
        channel, consumers = self._stats_reader.end()
        await self._rarely(self._entities.bind, consumers, channel)

    async def probe(self, entity: Exchange | Queue) -> Probe:
        """Return whether the broker's exchange or queue is as wanted, missing or different; change nothing."""
        return await self._rarely(entities.probe, entity)

    async def unbind(self, binding: Binding) -> None:
        """Remove a binding, and do not declare it again, as `Broker.unbind`."""
        self._entities.forget_binding(binding)
        await self._rarely(entities.unbind, binding)

    async def delete_queue(self, queue: str, *, if_empty: bool = False, classic: bool = False) -> None:
        """Delete a queue, as `Broker.delete_queue`; without `if_empty`, reconnects no longer declare the queue."""
        await self._rarely(entities.delete_queue, queue, if_empty=if_empty, classic=classic and not self._quorum)
        if not if_empty:
            self._entities.forget_queue(queue)

    def drop(self) -> None:
        """Cut both connections, as a network fault would, for tests."""
        self._incoming.abort()
        self._outgoing.abort()

    async def _rarely(
        self, call: Callable[Concatenate[AbstractConnection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Make a call, such as a declaration, on the consuming connection; repeat it after a loss, for 15 s in all.

        Raises:
            BrokerUnavailable: when the call did not succeed within `BROKER_CALL_SECONDS`; retryable.
        """
        last: BaseException | None = None
        try:
            async with asyncio.timeout(BROKER_CALL_SECONDS):
                while True:
                    connection = await self._incoming.connection()
                    try:
                        with heeded():
                            return await call(connection, *args, **kwargs)
                    except asyncio.CancelledError as error:
                        if canceled_by_us():
                            raise
                        last = error
                    except LOST as error:
                        last = error
                    await asyncio.sleep(0.05)
        except (TimeoutError, ConnectionError) as error:
            raise unreachable(self._incoming.address, last or self._incoming.last_error or error) from error


class Browsing:
    """The channels of one connection that fetch single messages; a queue without an answer blocks only its own fetch.

    A request is never withdrawn: aiormq would close its channel, and messages fetched over it would come again.
    """

    def __init__(self, rabbit: RabbitConnection, background: Supervisor) -> None:
        self._rabbit = rabbit
        self._background = background
        self._channels: list[ConsumerChannel] = []
        self._asking: set[ConsumerChannel] = set()
        self._given_up: dict[asyncio.Task[Delivery | None], str] = {}
        """The unanswered fetches whose callers have given up, with their queues."""

    async def get(self, connection: AbstractConnection, queue: str) -> Delivery | None:
        """Return one message of a queue, None if it is empty; reuse an unanswered fetch that another caller gave up."""
        asked = next((fetch for fetch, its in self._given_up.items() if its == queue), None)
        if asked is None:
            asked = self._background.start(self._ask(connection, queue), name=f"get {queue}", awaited=True)
        self._given_up.pop(asked, None)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._given_up[asked] = queue
            asked.add_done_callback(self._answered)
            raise

    def _answered(self, asked: asyncio.Task[Delivery | None]) -> None:
        """Put a message back into its queue when its fetch is answered after the caller has given up."""
        if self._given_up.pop(asked, None) is None or asked.cancelled():
            return
        if (error := asked.exception()) is not None:
            log.debug("A question was not answered", extra={"reason": repr(error)})
        elif (delivery := asked.result()) is not None:
            delivery.requeue()

    async def _ask(self, connection: AbstractConnection, queue: str) -> Delivery | None:
        consumer_channel = await self._idle(connection)
        self._asking.add(consumer_channel)
        try:
            fetched = await consumer_channel.channel.basic_get(queue)
        except ChannelNotFoundEntity as error:
            raise NotFound("There is no such queue", queue=queue) from error
        finally:
            self._asking.discard(consumer_channel)
        if isinstance(fetched.delivery, Basic.GetEmpty):
            return None
        settlements, tag = consumer_channel.settlements, fetched.delivery_tag or 0
        settlements.add(tag)
        redelivered, exchange, key = bool(fetched.redelivered), fetched.exchange or "", fetched.routing_key or ""
        header = packed(fetched.header)
        return AmqpDelivery(tag, redelivered, exchange, key, Source(queue), settlements, header, fetched.body)

    async def _idle(self, connection: AbstractConnection) -> ConsumerChannel:
        self._channels = [channel for channel in self._channels if not channel.channel.is_closed]
        for consumer_channel in self._channels:
            if consumer_channel not in self._asking:
                return consumer_channel
        consumer_channel = await self._rabbit.consumer_channel(connection)
        self._background.start(_lose_with(consumer_channel), name="watch browsed")
        self._channels.append(consumer_channel)
        return consumer_channel

    async def release(self) -> None:
        """Put all messages that were fetched and not settled back into their queues."""
        channels, self._channels = self._channels, []
        for consumer_channel in channels:
            with tolerating_loss("A browsing channel was lost"):
                async with asyncio.timeout(BROKER_CALL_SECONDS):
                    await consumer_channel.settlements.flushed()
                    consumer_channel.lose()  # a settlement behind `channel.close` would end the whole connection
                    await close_quietly(consumer_channel.channel)


async def _lose_with(consumer_channel: ConsumerChannel) -> None:
    """Wait for the loss of a channel, and mark the deliveries fetched over it as lost."""
    await asyncio.wait({consumer_channel.channel.closing})
    consumer_channel.lose()
