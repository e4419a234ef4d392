"""RabbitMQ consumers that share a channel, started again after the channel, connection or queue is lost.

A watch finds the consumers which the broker counts as alive, but which receive nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count, cycle
from typing import TypeVar

from aiormq.abc import AbstractConnection
from pamqp.commands import Basic

from coditect.aio.supervisor import Backoff, Supervisor
from coditect.broker.port import OnDelivery, QueueStats
from coditect.broker.rabbitmq import declare as entities
from coditect.broker.rabbitmq.channels import (
    CHANNEL_CALL_SECONDS,
    LOST,
    canceled_by_us,
    give_up,
    refusal,
    tolerating_loss,
)
from coditect.broker.rabbitmq.connection import RabbitConnection
from coditect.broker.rabbitmq.consumer_channel import ConsumerChannel, Source
from coditect.errors import BrokerUnavailable, CoditectError

log = logging.getLogger(__name__)

RESUBSCRIBE_SECONDS = 0.3
RESUBSCRIBE_BACKOFF = Backoff(RESUBSCRIBE_SECONDS, 2.0)
"""The pauses between the attempts to consume a lost queue."""
QUEUE_ANSWER_SECONDS = 3.0
"""The time that a queue has to answer, so that it holds up no other; doubled each time, up to `CHANNEL_CALL_SECONDS`.

RabbitMQ's channel waits much longer for a queue whose leader is dead or frozen, and so does all that follows on it; a
new channel knows the new leader. While the broker answers nothing at all, no queue is to blame.
"""
LAST_CHECK_SECONDS = 1.0
"""How long before the end of a queue's time the broker must answer, too; one that stood still answers all at once."""
FORGET_SECONDS = 30.0
"""The time for which a queue keeps its own group after a new consumer of it failed, as its caller may try again."""
MAX_SPLIT_CHANNELS = 16
"""The most channels among which a group's inactive consumers are divided, after one of them got no answer."""

_NOT_YET: tuple[type[BaseException], ...] = (*LOST, CoditectError)

DeclareAgain = Callable[[AbstractConnection, str], Awaitable[None]]
"""A function that declares a lost queue again, if this process declared it before."""


class Subscription(Source):
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
        super().__init__(queue, on_delivery)
        self.group = group
        self._on_lost = on_lost
        self.prefetch = prefetch
        """The number of the consumer's deliveries that may be unsettled at once."""
        self._exclusive = exclusive
        self._answer_seconds = QUEUE_ANSWER_SECONDS
        self.tag: str | None = None
        self.canceled = False
        self.away = False
        """Whether the broker answers, but the queue does not, as on a dead or frozen node of a cluster."""
        self.judged = False
        """Whether the last start of the consumer ended because its queue did not answer, although the broker did."""

    @property
    def active(self) -> bool:
        """Tell whether the consumer is registered at the broker right now."""
        return self.tag is not None

    async def cancel(self) -> None:
        """Cancel the consumer, as `Consumer.cancel`; earlier deliveries can still be settled."""
        self.canceled = True
        await self.group.unsubscribe(self)

    async def start(
        self, consumer_channel: ConsumerChannel, tag: str, *, answers: Callable[[], Awaitable[bool]]
    ) -> None:
        """Start the consumer on a channel, under the given consumer tag; `answers` tells whether the broker answers.

        Raises:
            TimeoutError: when the queue does not answer in time, although the broker does; the channel is then of no
                more use.
            Exception: any other of `channels.LOST`, when the channel is lost.
        """
        self.judged = False
        async with asyncio.timeout(None) as limit:
            marking = asyncio.ensure_future(self._mark_away(limit, answers))
            try:
                await consumer_channel.consume(self, tag=tag, prefetch=self.prefetch, exclusive=self._exclusive)
            finally:
                marking.cancel()
        self.tag, self.away, self._answer_seconds = tag, False, QUEUE_ANSWER_SECONDS

    async def _mark_away(self, limit: asyncio.Timeout, answers: Callable[[], Awaitable[bool]]) -> None:
        """Mark the queue as away, and end the time limit, when it has not answered in its time and the broker does."""

        async def answered(after: float) -> bool:
            await asyncio.sleep(after)
            try:
                return await answers()
            except Exception as error:  # noqa: BLE001 - a consumer must not wait for ever
                log.warning("The broker cannot be asked whether it answers", extra={"reason": repr(error)})
                return False

        while not (await answered(self._answer_seconds - LAST_CHECK_SECONDS) and await answered(LAST_CHECK_SECONDS)):
            pass
        self.away, self._answer_seconds = True, min(2 * self._answer_seconds, CHANNEL_CALL_SECONDS)
        self.judged = True
        limit.reschedule(0)

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
    """A channel with the consumers that share it, opened again when the channel or the connection is lost.

    A queue that does not answer when it is consumed costs the channel. So it moves to a group of its own, which ends
    with its last consumer.
    """

    def __init__(
        self,
        name: str,
        background: Supervisor,
        *,
        rabbit: RabbitConnection,
        declare_again: DeclareAgain,
        groups: dict[str, Group],
        parent: Group | None = None,
    ) -> None:
        """Create a group without a channel, and add it to the process's `groups`; queues moved to it from `parent`."""
        self._name = name
        self._rabbit = rabbit
        self._declare_again = declare_again
        self._background = background
        self._groups = groups
        groups[name] = self
        self._parent = parent
        self._ends_at = 0.0
        """The time at which the group ends if it is empty, on the event loop's clock."""
        self._moved: dict[str, Group] = {}
        """The groups to which queues moved from this one."""
        self._connection: AbstractConnection | None = None
        self._consumer_channel: ConsumerChannel | None = None
        self._lock = asyncio.Lock()
        self._tags = count(1)
        self.subscriptions: set[Subscription] = set()

    @property
    def opened(self) -> bool:
        """Tell whether the group's channel is open."""
        return self._open is not None

    @property
    def _open(self) -> ConsumerChannel | None:
        """The group's channel; None while it is not open."""
        held = self._consumer_channel
        return None if held is None or held.channel.is_closed else held

    async def restore(self, connection: AbstractConnection) -> None:
        """Open the group's channel and start all its consumers on a new connection.

        If that fails, it is repeated in the background; a queue that does not answer is tried again alone.
        """
        self._connection = connection
        for subscription in self.subscriptions:
            subscription.away = False
        async with self._lock:
            if not self.subscriptions:
                return
            with self._opening():
                await self._reopen()
            if not self.opened:
                self._keep_open(connection, None)

    def _opening(self) -> AbstractContextManager[None]:
        return tolerating_loss("A channel cannot be opened yet", level=logging.WARNING, group=self._name)

    async def subscribe(self, subscription: Subscription) -> None:
        """Start a consumer on the channel of the group that has its queue, and restore the consumer after each loss.

        Raises:
            CoditectError: when the broker refuses the consumer.
            Exception: any of `channels.LOST`, when the connection is lost.
        """
        async with self._lock:
            ended = self._groups.get(self._name) is not self
            other = self._parent if ended else self._moved.get(subscription.queue)
            if other is None:
                await self._add(subscription)
        if other is not None:
            await other.subscribe(subscription)

    async def _add(self, subscription: Subscription) -> None:
        if not self.opened:
            await self._reopen()
        self.subscriptions.add(subscription)
        subscription.group = self
        try:
            await self._start_in_time(subscription)
        except BaseException as error:
            subscription.group.subscriptions.discard(subscription)
            subscription.group._end_if_empty(after=FORGET_SECONDS)
            refused = refusal(error, entity=subscription.queue)
            if refused is None:
                raise
            raise refused from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Cancel a consumer at the broker, and restore it no longer."""
        async with self._lock:
            self.subscriptions.discard(subscription)
            self._end_if_empty()
            tag, subscription.tag = subscription.tag, None
            consumer_channel = self._open
            if tag is None or consumer_channel is None:
                return
            with tolerating_loss("A consumer ended with its channel"):
                await consumer_channel.cancel(tag)

    def _end_if_empty(self, *, after: float = 0.0) -> None:
        """End a group that has a parent, and neither consumers nor moved queues, once its deliveries are settled."""
        if self._parent is not None and not self.subscriptions and not self._moved:
            self._ends_at = asyncio.get_running_loop().time() + after
            self._background.start(self._end(self._parent, self._ends_at, after), name=f"end {self._name}")

    async def _end(self, parent: Group, ends_at: float, after: float) -> None:
        await asyncio.sleep(after)
        async with self._lock:
            if self.subscriptions or self._moved or self._ends_at != ends_at:
                return
            if self._consumer_channel is not None and self._consumer_channel.settlements.outstanding:
                self._end_if_empty(after=RESUBSCRIBE_SECONDS)
                return
            await self.close()
            self._groups.pop(self._name, None)
            parent._moved = {queue: group for queue, group in parent._moved.items() if group is not self}
        parent._end_if_empty()

    async def renew(self, subscription: Subscription) -> None:
        """Start a consumer again on the same channel, after canceling it there if it is still registered."""
        async with self._lock:
            consumer_channel = self._open
            if subscription.canceled or subscription not in self.subscriptions or consumer_channel is None:
                return
            if subscription.tag is not None:
                await consumer_channel.cancel(subscription.tag)
                subscription.deafen()
            await self._start_in_time(subscription)

    async def close(self) -> None:
        """Write the buffered settlements, and close the channel; unsettled deliveries return to their queues."""
        self._connection = None
        consumer_channel = self._open
        if consumer_channel is None:
            return
        with tolerating_loss("Closing a lost channel failed"):
            async with asyncio.timeout(CHANNEL_CALL_SECONDS):
                await consumer_channel.settlements.flushed()
                consumer_channel.lose()  # a settlement behind `channel.close` would end the whole connection
                await consumer_channel.channel.close()

    async def _start(self, subscription: Subscription) -> None:
        """Start a consumer on the group's channel; when its queue does not answer, divide the group."""
        if self._consumer_channel is None:
            return
        tag = f"{self._name or 'c'}.{next(self._tags)}"
        try:
            await subscription.start(self._consumer_channel, tag, answers=self._rabbit.answers)
        except TimeoutError:
            if subscription.judged:  # a lost connection may raise a TimeoutError, too
                self._divide(subscription.queue)
            raise

    def _divide(self, hanging: str) -> None:
        """Drop the channel, and keep only the consumers that were active on it.

        The hanging queue moves to a group of its own. Other queues without an active consumer may hang, too: they are
        dealt to several groups, where they cost no active consumer its channel, and most others no time.
        """
        inactive = (held.queue for held in self.subscriptions if not held.active and not held.canceled)
        queues = dict.fromkeys([hanging, *inactive])
        self._lose()
        if self._connection is None or all(held.queue == hanging for held in self.subscriptions):
            return
        log.warning("A queue does not answer; its consumers get a channel of their own", extra={"queue": hanging})
        alone, *others = [self._beside() for _ in range(min(len(queues), MAX_SPLIT_CHANNELS))]
        del queues[hanging]
        moved = {hanging: alone} | dict(zip(queues, cycle(others), strict=False))
        self._moved |= moved
        for subscription in tuple(self.subscriptions):
            if subscription.queue in moved and not subscription.canceled:
                self.subscriptions.discard(subscription)
                subscription.group = moved[subscription.queue]
                subscription.group.subscriptions.add(subscription)
        for group in (alone, *others):
            group._keep_open(self._connection, None)
            group._end_if_empty()

    def _beside(self) -> Group:
        group = Group(
            f"{self._name}/{next(self._tags)}",
            self._background,
            rabbit=self._rabbit,
            declare_again=self._declare_again,
            groups=self._groups,
            parent=self,
        )
        group._connection = self._connection
        return group

    async def _start_in_time(self, subscription: Subscription) -> None:
        """Start a consumer; when there is no answer, move the group's other consumers to a new channel."""
        consumer_channel = self._consumer_channel
        try:
            await self._start(subscription)
        except TimeoutError:  # aiormq ends the channel only when the broker has answered the close
            if self._connection is not None and consumer_channel is not None:
                self._lose()
                self._background.start(give_up(consumer_channel.channel), name=f"give up {self._name}")
                self._keep_open(self._connection, None)
            raise

    async def _is_there(self, subscription: Subscription, connection: AbstractConnection) -> bool:
        """Tell whether a queue exists and answers; to consume one that does not would close or hold up the channel."""
        if subscription.away:
            return False
        try:
            async with self._rabbit.looks:
                return await self._exists(subscription.queue, connection)
        except (BrokerUnavailable, TimeoutError):
            subscription.away = await self._rabbit.answers()
            return False

    async def _exists(self, queue: str, connection: AbstractConnection) -> bool:
        """Tell whether a queue exists.

        Raises:
            TimeoutError: when it does not answer in time; the look, whose channel hangs, too, ends in the background.
            Exception: `BrokerUnavailable` or any of `channels.LOST`.
        """
        look = self._background.start(entities.stats(connection, queue), name=f"look at {queue}", awaited=True)
        try:
            if not (await asyncio.wait({look}, timeout=QUEUE_ANSWER_SECONDS))[0]:
                raise TimeoutError
            return look.result() is not None
        finally:
            look.cancel()

    async def _reopen(self) -> None:
        self._lose()
        connection = self._connection
        if connection is None or connection.is_closed:
            return
        self._consumer_channel = consumer_channel = await self._rabbit.consumer_channel(connection)
        consumer_channel.channel.on_consumer_cancel_callbacks.add(self._canceled_by_broker)
        try:
            wanted = [held for held in self.subscriptions if not held.canceled]
            there = await asyncio.gather(*(self._is_there(held, connection) for held in wanted))
            for subscription, is_there in zip(wanted, there, strict=True):
                if is_there:
                    await self._start(subscription)
                else:
                    self._keep_resubscribing(subscription)
        except BaseException:  # nobody would watch a channel that has but some of its subscriptions
            self._lose()
            self._background.start(give_up(consumer_channel.channel), name=f"give up {self._name}")
            raise
        self._keep_open(connection, consumer_channel)

    def _keep_open(self, connection: AbstractConnection, consumer_channel: ConsumerChannel | None) -> None:
        """Open the group's channel again, while the connection is open, when the given one is closed, or if None."""

        def is_over() -> bool:
            """Tell whether there is nothing to reopen: no consumers, a new channel, or another connection or none."""
            replaced = not self.subscriptions or (self._consumer_channel is not consumer_channel and self.opened)
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
            with self._opening():
                async with self._lock:  # without it, the channel may be one that somebody opens and gives up again
                    if self.opened or self._connection is not connection or not self.subscriptions:
                        return
                    log.warning("A channel was closed; opening it again", extra={"group": self._name})
                    await self._reopen()
            await asyncio.sleep(RESUBSCRIBE_SECONDS)

    def _canceled_by_broker(self, frame: Basic.Cancel | Basic.CancelOk) -> None:
        if self._consumer_channel is not None and frame.consumer_tag is not None:
            self._consumer_channel.forget(frame.consumer_tag)
        for subscription in tuple(self.subscriptions):
            if subscription.tag == frame.consumer_tag:
                subscription.deafen()
                self._keep_resubscribing(subscription)

    def _keep_resubscribing(self, subscription: Subscription) -> None:
        channel = self._open

        def is_over() -> bool:
            """Tell whether the consumer is active or canceled, or its channel is closed or replaced by another."""
            return subscription.canceled or subscription.tag is not None or channel is not self._open

        if channel is not None:
            work = partial(self._resubscribe, subscription, channel)
            self._background.keep(work, name=f"resubscribe {subscription.queue}", critical=True, until=is_over)

    async def _resubscribe(self, subscription: Subscription, consumer_channel: ConsumerChannel) -> None:
        """Try until it succeeds, every 0.3 s and later every 2 s, to redeclare and consume a lost queue.

        Only a queue that the process declared before is declared again. The work ends, too, when the consumer is
        canceled or its channel is replaced.
        """
        for tries in count(1):
            if subscription.canceled or subscription.tag is not None or canceled_by_us():
                return
            await asyncio.sleep(RESUBSCRIBE_BACKOFF.pause(tries))
            if consumer_channel is not self._open:
                return
            connection = consumer_channel.channel.connection
            try:
                async with self._rabbit.retries:
                    found = await self._exists(subscription.queue, connection)
                    await self._declare_again(connection, subscription.queue)
                    found = found or await self._exists(subscription.queue, connection)
                if found:
                    await self.renew(subscription)
            except asyncio.CancelledError:
                if canceled_by_us():
                    raise
            except _NOT_YET as error:
                silent = isinstance(error, BrokerUnavailable | TimeoutError)
                subscription.away = silent and await self._rabbit.answers()
                log.log(
                    logging.WARNING if tries == 1 else logging.DEBUG,
                    "A queue cannot be consumed yet",
                    extra={"queue": subscription.queue, "reason": repr(error)},
                )


ON_ITS_WAY_SECONDS = 0.2
FEW_CONSUMERS = 16
CHECK_ROUNDS = 3
"""The number of rounds in which each of many consumers is checked once."""

T = TypeVar("T")

ReadStats = Callable[[str], Awaitable[QueueStats | None]]
EndRound = Callable[[], Awaitable[None]]


async def watch_consumers(
    groups: Mapping[str, Group], stats: ReadStats, end_round: EndRound, *, seconds: float
) -> None:
    """Check the process's consumers in rounds, and restart each one that the broker does not have or does not serve.

    A consumer is deaf when the broker has none on its queue, or when messages are ready, the consumer has credit, and
    nothing came since the last round. Ready messages are counted twice, so that a message on its way is no proof.
    """
    seen: dict[Subscription, int] = {}
    for number in count():
        if canceled_by_us():
            return
        await asyncio.sleep(seconds)
        consumers = [(group, held) for group in groups.values() for held in group.subscriptions]
        for group, subscription in due(consumers, number):
            before = seen.get(subscription)
            seen[subscription] = subscription.delivered
            quiet = before == subscription.delivered
            if subscription.active:  # else it is being restored already
                with _checking():
                    if await _is_deaf(subscription, stats, quiet=quiet):
                        log.warning("A consumer was deaf; subscribing again", extra={"queue": subscription.queue})
                        await group.renew(subscription)
        with _checking():
            await end_round()
        seen = {subscription: n for subscription, n in seen.items() if not subscription.canceled}


def due(consumers: Sequence[T], number: int) -> Sequence[T]:
    """Return the consumers to check in this round: all if there are at most 16, else a third in turn, to save work.

    To check all 40 queues of an idle dispatcher in every round would be a quarter of its work.
    """
    return consumers if len(consumers) <= FEW_CONSUMERS else consumers[number % CHECK_ROUNDS :: CHECK_ROUNDS]


def _checking() -> AbstractContextManager[None]:
    return tolerating_loss("The consumers could not be checked", CoditectError)


async def _is_deaf(subscription: Subscription, stats: ReadStats, *, quiet: bool) -> bool:
    tag, delivered = subscription.tag, subscription.delivered
    for pause in (ON_ITS_WAY_SECONDS, 0):
        found = await stats(subscription.queue)
        if found is None or subscription.canceled or subscription.tag != tag:
            return False
        starved = quiet and found.messages > 0 and subscription.unsettled < subscription.prefetch
        if not starved or subscription.delivered != delivered:
            return found.consumers == 0
        await asyncio.sleep(pause)
    return True
