"""RabbitMQ consumers that share a channel, started again after the channel, connection or queue is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from pamqp.commands import Basic

from coditect.aio.backoff import Backoff
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import OnDelivery
from coditect.broker.rabbitmq import declare as rare
from coditect.broker.rabbitmq.connection.channels import CALL_SECONDS, give_up
from coditect.broker.rabbitmq.delivery import AmqpDelivery
from coditect.broker.rabbitmq.errors import LOST, canceled_by_us, refusal
from coditect.broker.rabbitmq.path import ConsumerChannel, WirePath
from coditect.errors import BrokerUnavailable, CoditectError

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.3
RETRY = Backoff(RETRY_SECONDS, 2.0)
"""The pauses between the attempts to consume a lost queue."""
ANSWER_SECONDS = 3.0
"""The time that a queue has to answer, so that it holds up no other; doubled each time, up to `CALL_SECONDS`.

RabbitMQ's channel waits much longer for a queue whose leader is dead or frozen, and so does all that follows on it; a
new channel knows the new leader.
"""

_NOT_YET: tuple[type[BaseException], ...] = (*LOST, CoditectError)

DeclareAgain = Callable[[AbstractConnection, str], Awaitable[None]]
"""A function that declares a lost queue again, if this process declared it before."""


class Subscription:
    """The RabbitMQ implementation of the interface `Consumer`, restored after reconnects until it is canceled."""

    def __init__(
        self,
        group: Group,
        queue: str,
        on_delivery: OnDelivery,
        *,
        prefetch: int,
        on_lost: Callable[[], None] | None,
        exclusive: bool,
    ) -> None:
        self._group = group
        self._on_delivery = on_delivery
        self._on_lost = on_lost
        self._queue = queue
        self._prefetch = prefetch
        self._exclusive = exclusive
        self._answer_seconds = ANSWER_SECONDS
        self.tag: str | None = None
        self.unsettled = 0
        self.delivered = 0
        self.canceled = False
        self.away = False
        """Whether the broker answers, but the queue does not, as on a dead or frozen node of a cluster."""

    @property
    def queue(self) -> str:
        """The name of the consumed queue."""
        return self._queue

    @property
    def prefetch(self) -> int:
        """The number of the consumer's deliveries that may be unsettled at once."""
        return self._prefetch

    @property
    def active(self) -> bool:
        """Tell whether the consumer is registered at the broker right now."""
        return self.tag is not None

    async def cancel(self) -> None:
        """Cancel the consumer, as `Consumer.cancel`; earlier deliveries can still be settled."""
        self.canceled = True
        await self._group.unsubscribe(self)

    async def start(self, consumer_channel: ConsumerChannel, tag: str) -> None:
        """Start the consumer on a channel, under the given consumer tag.

        Raises:
            TimeoutError: when the queue does not answer in time; the channel is then of no more use.
            Exception: any other of `errors.LOST`, when the channel is lost.
        """
        try:
            async with asyncio.timeout(self._answer_seconds):
                await consumer_channel.consume(self, tag=tag, prefetch=self._prefetch, exclusive=self._exclusive)
        except TimeoutError:
            self.away, self._answer_seconds = True, min(2 * self._answer_seconds, CALL_SECONDS)
            raise
        self.tag, self.away, self._answer_seconds = tag, False, ANSWER_SECONDS

    def deliver(self, delivery: AmqpDelivery) -> None:
        """Pass a delivery to the callback; reject the delivery when the callback raises."""
        self.unsettled += 1
        self.delivered += 1
        try:
            self._on_delivery(delivery)
        except Exception:
            log.exception("A delivery could not be taken; the broker keeps it as a dead letter")
            delivery.reject()

    def lose(self) -> None:
        """Mark the consumer as gone with its channel and unsettled deliveries; call `on_lost` unless it is canceled."""
        self.unsettled = 0
        self.deafen()

    def deafen(self) -> None:
        """Mark the consumer, but not its deliveries, as gone at the broker; call `on_lost` unless it is canceled."""
        self.tag = None
        if self._on_lost is not None and not self.canceled:
            self._on_lost()


class Group:
    """A channel with the consumers that share it, opened again when the channel or the connection is lost."""

    def __init__(self, name: str, background: Supervisor, *, path: WirePath, declare_again: DeclareAgain) -> None:
        self._name = name
        self._path = path
        self._declare_again = declare_again
        self._background = background
        self._connection: AbstractConnection | None = None
        self._consumer_channel: ConsumerChannel | None = None
        self._lock = asyncio.Lock()
        self._tags = count(1)
        self.subscriptions: set[Subscription] = set()

    @property
    def opened(self) -> bool:
        """Tell whether the group's channel is open."""
        return self._channel is not None

    @property
    def _channel(self) -> Channel | None:
        """The group's aiormq channel; None while it is not open."""
        return (
            None
            if self._consumer_channel is None or self._consumer_channel.channel.is_closed
            else self._consumer_channel.channel
        )

    async def restore(self, connection: AbstractConnection) -> None:
        """Open the group's channel and start all its consumers on a new connection.

        If that fails, it is repeated in the background; a queue that does not answer is tried again alone.
        """
        self._connection = connection
        for subscription in self.subscriptions:
            subscription.away = False
        async with self._lock:
            try:
                await self._reopen()
            except asyncio.CancelledError:
                if canceled_by_us():
                    raise
                self._keep_open(connection, None)
            except LOST as error:
                log.warning("A channel cannot be opened yet", extra={"group": self._name, "reason": repr(error)})
                self._keep_open(connection, None)

    async def subscribe(self, subscription: Subscription) -> None:
        """Start a consumer on the group's channel, and restore the consumer after each loss.

        Raises:
            CoditectError: when the broker refuses the consumer.
            Exception: any of `errors.LOST`, when the connection is lost.
        """
        async with self._lock:
            if self._channel is None:
                await self._reopen()
            self.subscriptions.add(subscription)
            try:
                await self._start_in_time(subscription)
            except BaseException as error:
                self.subscriptions.discard(subscription)
                refused = refusal(error, entity=subscription.queue)
                if refused is None:
                    raise
                raise refused from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Cancel a consumer at the broker, and restore it no longer."""
        async with self._lock:
            self.subscriptions.discard(subscription)
            tag, subscription.tag = subscription.tag, None
            if tag is None or self._consumer_channel is None or not self.opened:
                return
            try:
                await self._consumer_channel.cancel(tag)
            except LOST as error:
                log.debug("A consumer ended with its channel", extra={"reason": repr(error)})

    async def renew(self, subscription: Subscription) -> None:
        """Start a consumer again on the same channel, after canceling it there if it is still registered."""
        async with self._lock:
            if subscription.canceled or self._consumer_channel is None or not self.opened:
                return
            if subscription.tag is not None:
                await self._consumer_channel.cancel(subscription.tag)
                subscription.deafen()
            await self._start_in_time(subscription)

    async def close(self) -> None:
        """Write the buffered settlements, and close the channel; unsettled deliveries return to their queues."""
        self._connection = None
        consumer_channel = self._consumer_channel
        if consumer_channel is None or not self.opened:
            return
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await consumer_channel.settlements.flushed()
                consumer_channel.lose()  # a settlement behind `channel.close` would end the whole connection
                await consumer_channel.channel.close()
        except LOST as error:
            log.debug("Closing a lost channel failed", extra={"reason": repr(error)})

    async def _start(self, subscription: Subscription) -> None:
        if self._consumer_channel is not None:
            await subscription.start(self._consumer_channel, f"{self._name or 'c'}.{next(self._tags)}")

    async def _start_in_time(self, subscription: Subscription) -> None:
        """Start a consumer; when its queue does not answer, move the group's other consumers to a new channel."""
        try:
            await self._start(subscription)
        except TimeoutError:  # aiormq ends the channel only when the broker has answered the close
            if self._connection is not None:
                self._lose()
                self._keep_open(self._connection, None)
            raise

    async def _is_there(self, subscription: Subscription, connection: AbstractConnection) -> bool:
        """Tell whether a queue exists and answers; to consume one that does not would close or hold up the channel."""
        if subscription.away:
            return False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await rare.stats(connection, subscription.queue) is not None
        except (BrokerUnavailable, TimeoutError):
            subscription.away = True
            return False

    async def _reopen(self) -> None:
        self._lose()
        connection = self._connection
        if connection is None or connection.is_closed:
            return
        self._consumer_channel = consumer_channel = await self._path.consumer_channel(connection)
        consumer_channel.channel.on_consumer_cancel_callbacks.add(self._canceled_by_broker)
        try:
            wanted = [one for one in self.subscriptions if not one.canceled]
            there = await asyncio.gather(*(self._is_there(one, connection) for one in wanted))
            for subscription, is_there in zip(wanted, there, strict=True):
                if is_there:
                    await self._start(subscription)
                else:
                    self._keep_resubscribing(subscription)
        except BaseException:  # nobody would watch a channel that has but some of its subscriptions
            self._lose()
            self._background.start(give_up(consumer_channel.channel), name=f"give up {self._name}")
            raise
        consumer_channel.start(self._background)
        self._keep_open(connection, consumer_channel)

    def _keep_open(self, connection: AbstractConnection, consumer_channel: ConsumerChannel | None) -> None:
        """Open the group's channel again, while the connection is open, when the given one is closed, or if None."""

        def is_over() -> bool:
            """Tell whether the channel needs no reopening: a new one is open, or its connection is gone or replaced."""
            replaced = self._consumer_channel is not consumer_channel and self.opened
            return replaced or self._connection is not connection or not connection.is_opened

        work = partial(self._watch, connection, consumer_channel)
        self._background.keep(work, name=f"watch {self._name}", critical=True, until=is_over)

    def _lose(self) -> None:
        """Drop the group's channel, and mark all of its deliveries as lost; idempotent."""
        if self._consumer_channel is None:
            return
        self._consumer_channel.lose()
        self._consumer_channel = None
        for subscription in tuple(self.subscriptions):
            subscription.lose()

    async def _watch(self, connection: AbstractConnection, consumer_channel: ConsumerChannel | None) -> None:
        """Wait until the channel, if any, is closed, and open it again while the connection is open."""
        if consumer_channel is not None:
            await asyncio.wait({consumer_channel.channel.closing})
            if self._consumer_channel is consumer_channel:
                self._lose()
        while connection.is_opened and not canceled_by_us():
            try:
                async with self._lock:  # without it, the channel may be one that somebody opens and gives up again
                    if self.opened or self._connection is not connection:
                        return
                    log.warning("A channel was closed; opening it again", extra={"group": self._name})
                    await self._reopen()
                    return
            except asyncio.CancelledError:
                if canceled_by_us():
                    raise
            except LOST as error:
                log.warning("A channel cannot be opened yet", extra={"reason": repr(error)})
            await asyncio.sleep(RETRY_SECONDS)

    def _canceled_by_broker(self, frame: Basic.Cancel | Basic.CancelOk) -> None:
        if self._consumer_channel is not None and frame.consumer_tag is not None:
            self._consumer_channel.forget(frame.consumer_tag)
        for subscription in tuple(self.subscriptions):
            if subscription.tag == frame.consumer_tag:
                subscription.deafen()
                self._keep_resubscribing(subscription)

    def _keep_resubscribing(self, subscription: Subscription) -> None:
        channel = self._channel

        def is_over() -> bool:
            """Tell whether the consumer is active or canceled, or its channel is closed or replaced by another."""
            return subscription.canceled or subscription.tag is not None or channel is not self._channel

        if channel is not None:
            work = partial(self._resubscribe, subscription, channel)
            self._background.keep(work, name=f"resubscribe {subscription.queue}", critical=True, until=is_over)

    async def _resubscribe(self, subscription: Subscription, channel: Channel) -> None:
        """Try until it succeeds, every 0.3 s and later every 2 s, to redeclare and consume a lost queue.

        Only a queue that the process declared before is declared again. The work ends, too, when the consumer is
        canceled or its channel is replaced.
        """
        for tries in count(1):
            if subscription.canceled or subscription.tag is not None or canceled_by_us():
                return
            await asyncio.sleep(RETRY.pause(tries))
            if channel is not self._channel:
                return
            try:
                await self._declare_again(channel.connection, subscription.queue)
                if await rare.stats(channel.connection, subscription.queue) is not None:
                    await self.renew(subscription)
            except asyncio.CancelledError:
                if canceled_by_us():
                    raise
            except _NOT_YET as error:
                subscription.away = isinstance(error, BrokerUnavailable | TimeoutError)
                log.log(
                    logging.WARNING if tries == 1 else logging.DEBUG,
                    "A queue cannot be consumed yet",
                    extra={"queue": subscription.queue, "reason": repr(error)},
                )
