"""Publishing as `mandatory` and with confirms, within a limit of unconfirmed publishes, with retries for a time.

A publish is sent at once where nothing holds it up (`PublisherChannel.begin`). A publish that is held up, or fails at
first, is repeated by a coroutine until its outcome is known or its time is over.

The channels are split so that a queue that sends no confirms holds up only the publishes to it. A queue that does not
answer (its leader hangs, or is elected for ever) never confirms. Worse, RabbitMQ's channel waits for the queue: half a
minute for the first message, and for good when some hundreds lie before it; then the connection waits, too. So tasks,
replies, results, retries, events and everything else have a channel each: the queues of clients and listeners come and
go, and in a cluster without one of its nodes, RabbitMQ takes its time to delete a queue. Where the oldest publish of a
channel stays unconfirmed for some seconds, its key gets a new channel of its own, and the others another; only a new
channel knows the new leader of a queue whose node died.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from coditect.aio.supervisor import Backoff, Supervisor
from coditect.broker.port import ASTRAY_PAUSE_SECONDS, ASTRAY_SECONDS, Promise
from coditect.broker.rabbitmq.channels import LOST, canceled_by_us, oversize, refusal
from coditect.broker.rabbitmq.connection import RabbitConnection
from coditect.broker.rabbitmq.publisher_channel import (
    Late,
    Publish,
    PublisherChannel,
    PublishRefused,
    PublishReturned,
)
from coditect.errors import BrokerUnavailable, CoditectError, NotFound, Overloaded, PublishUnconfirmed, Unroutable
from coditect.model.message import Message
from coditect.wire import routing
from coditect.wire.tasks import sent_again

log = logging.getLogger(__name__)

PUBLISH_CHECK_SECONDS = 0.5
STUCK_SECONDS = 3.0
"""The time after which a channel's oldest unconfirmed publish counts as stuck, if the broker answers.

The time doubles, up to `MAX_RENEW_SECONDS`, each time that a channel gives way and its key gets no other one, until a
publish is confirmed on the channel.
"""
STUCK_GRACE_SECONDS = 1.0
"""The time that other publishes on a stuck channel have for their confirms before they are sent again."""
RENEW_SECONDS = 1.0
"""The age from which a channel on which a publish is refused gives way to a new one."""
MAX_RENEW_SECONDS = 30.0
"""The longest time between two channels for the same refused key: from 1 s the time doubles, as a queue may be full."""
CHANNEL_DRAIN_SECONDS = 30.0
"""The longest time for which a channel that gave way waits for the confirms of its publishes."""
DEDICATED_SECONDS = 5.0
"""The time for which a key keeps a channel of its own after its last publish."""
MAX_DEDICATED_CHANNELS = 16
"""The most keys of a kind of message with channels of their own; a listener's silent queue holds up many event keys."""
DEDICATED_WINDOW = 100
EVENTS_WINDOW = 200
"""The limit of unconfirmed events; behind 400 on a channel that waits, RabbitMQ stops the whole connection."""

Route = tuple[str, str]
"""The exchange and routing key of a publish."""


class ConfirmWindow:
    """A limit of `size` unconfirmed publishes at once: a semaphore that serves its waiting callers in order."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter_at_once(self) -> bool:
        """Count one more unconfirmed publish if the limit allows that and no caller waits; return whether counted."""
        if self._free <= 0 or self._waiting:
            return False
        self._free -= 1
        return True

    async def enter(self) -> None:
        """Wait until the limit allows one more unconfirmed publish, and count it."""
        if self.enter_at_once():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Count one unconfirmed publish less, or admit the caller that has waited longest in its stead."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


@dataclass(slots=True, eq=False)
class WindowedChannel:
    """A channel for publishes, opened on first use, with a limit of unconfirmed publishes."""

    window: ConfirmWindow
    publisher_channel: PublisherChannel | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    oldest: int = 0
    """The number of the oldest unconfirmed publish at the last check."""
    since: float = 0.0
    """The time since when this publish is the oldest unconfirmed one, on the event loop's clock."""
    opened_at: float = 0.0
    """The time at which the channel was opened, on the event loop's clock."""
    used_at: float = 0.0
    """The time at which a key's own channel last had an unconfirmed publish, on the event loop's clock."""
    stuck_seconds: float = STUCK_SECONDS

    @property
    def first(self) -> Publish | None:
        """The publish on the open channel that has waited longest for its confirm; None when none waits."""
        channel = self.publisher_channel
        return None if channel is None or channel.closed else channel.oldest

    async def opened(self, rabbit: RabbitConnection) -> PublisherChannel:
        """Return the open channel, opened if need be; waits for a connection.

        Raises:
            Exception: any of `channels.LOST`, when the connection is lost.
        """
        async with self.opening:
            connection, channel = await rabbit.connection(), self.publisher_channel
            if channel is None or channel.closed or channel.connection is not connection:
                channel = self.publisher_channel = await rabbit.publisher_channel(connection)
                self.opened_at, self.oldest = asyncio.get_running_loop().time(), 0
            return channel


WINDOW_KINDS = ("tasks", "replies", "results", "retries", "events", "rest")
"""The kinds of messages, each with a channel of its own."""


@lru_cache(maxsize=4096)
def _kind(exchange: str) -> str:
    if exchange in (routing.SUBMIT, routing.TASKS, routing.AGENTS):
        return "tasks"
    if exchange in (routing.REPLIES, ""):
        return "replies"
    if exchange == routing.RESULTS:
        return "results"
    if exchange in (routing.EVENTS, routing.BROADCAST):
        return "events"
    return "retries" if exchange == routing.DEAD or exchange.startswith("coditect.retry.") else "rest"


class PublishChannels:
    """The channels on which a connection publishes: one for each kind of message, and for keys without confirms."""

    def __init__(self, background: Supervisor, *, window: int) -> None:
        self._background = background
        sizes = dict.fromkeys(WINDOW_KINDS, window) | {"events": min(window, EVENTS_WINDOW)}
        self._kinds = {kind: WindowedChannel(ConfirmWindow(size)) for kind, size in sizes.items()}
        self._dedicated: dict[Route, WindowedChannel] = {}
        self._replaced: list[WindowedChannel] = []
        """The channels that gave way to new ones, from then (`opened_at`) until their publishes are confirmed."""
        self._renewals: dict[Route, tuple[float, float]] = {}
        """When a refused key got a new channel last, and the least time until it gets another."""

    def of(self, exchange: str, routing_key: str) -> WindowedChannel:
        """Return the channel on which to publish to an exchange and routing key."""
        if self._dedicated and (dedicated := self._dedicated.get((exchange, routing_key))) is not None:
            return dedicated
        return self._kinds[_kind(exchange)]

    def refused(self, exchange: str, routing_key: str) -> None:
        """Have later publishes go over a new channel if a publish was refused on one that has been open for a second.

        A channel of RabbitMQ 3.10 whose first publish to a quorum queue comes while the queue has no leader, as after
        the death of a node, asks the dead leader ever after, and refuses all publishes to the queue; a new channel
        knows the new leader. A full queue refuses on the new channel, too: its key gets new ones ever more rarely.
        """
        key = (exchange, routing_key)
        windowed = self.of(exchange, routing_key)
        old, now = windowed.publisher_channel, asyncio.get_running_loop().time()
        renewed_at, pause = self._renewals.get(key, (-math.inf, 0.0))
        if old is None or now - windowed.opened_at < RENEW_SECONDS or now - renewed_at < pause:
            return
        longest = 2 * MAX_RENEW_SECONDS
        recent = {route: renewal for route, renewal in self._renewals.items() if now - renewal[0] < longest}
        pause = min(2 * pause, MAX_RENEW_SECONDS) if key in recent else RENEW_SECONDS
        self._renewals = recent | {key: (now, pause)}
        self._replaced.append(replace(windowed, opened_at=now))
        windowed.publisher_channel, windowed.opened_at, windowed.oldest = None, now, 0

    @property
    def _all(self) -> tuple[WindowedChannel, ...]:
        return (*self._kinds.values(), *self._replaced, *self._dedicated.values())

    @property
    def held_up(self) -> bool:
        """Tell whether the broker has an alarm, or reads more slowly than is written, as seen on the open channels."""
        channels = [windowed.publisher_channel for windowed in self._all]
        return any(channel is not None and not channel.closed and channel.held_up for channel in channels)

    # -- looking after them ---------------------------------------------------------------------------------

    async def watch(self, answers: Callable[[], Awaitable[bool]]) -> None:
        """Check for ever, every 0.5 s: give a routing key that gets no confirms its own channel, until it is idle."""
        while True:
            await asyncio.sleep(PUBLISH_CHECK_SECONDS)
            for windowed in self._all:
                key = self._stuck_route(windowed)
                if key is not None:
                    await self._replace_stuck(windowed, key, answers)
            self._close_idle()

    def _stuck_route(self, windowed: WindowedChannel) -> Route | None:
        """Return exchange and key of a channel's oldest publish if unconfirmed for 3 s without an alarm, else None."""
        first = windowed.first
        now = asyncio.get_running_loop().time()
        channel = windowed.publisher_channel
        confirmed = windowed.oldest > 0 if first is None else first.number > max(1, windowed.oldest)
        if channel is not None and not channel.closed and confirmed:
            windowed.stuck_seconds = STUCK_SECONDS  # the broker has answered on this channel
        if first is None or channel is None or first.number != windowed.oldest or channel.held_up:
            windowed.oldest, windowed.since = (0 if first is None else first.number), now
            return None
        return (first.exchange, first.routing_key) if now - windowed.since >= windowed.stuck_seconds else None

    async def _replace_stuck(
        self, windowed: WindowedChannel, key: Route, answers: Callable[[], Awaitable[bool]]
    ) -> None:
        publisher_channel = windowed.publisher_channel
        if publisher_channel is None or not await answers():
            return  # a connection without answers goes, with everything on it
        if self._stuck_route(windowed) != key or windowed.publisher_channel is not publisher_channel:
            return  # we had not read the confirm yet
        if self._dedicated.get(key) is windowed or not self._dedicate(key):
            windowed.stuck_seconds = min(2 * windowed.stuck_seconds, MAX_RENEW_SECONDS)
        windowed.publisher_channel, windowed.oldest = None, 0
        self._background.start(_give_back(publisher_channel), name="give back")

    def _dedicate(self, key: Route) -> bool:
        """Reserve a channel for a key, unless 16 keys of its kind have one; return whether the key has one."""
        if key in self._dedicated:
            return True
        kind = _kind(key[0])
        if sum(_kind(exchange) == kind for exchange, _ in self._dedicated) >= MAX_DEDICATED_CHANNELS:
            return False
        log.warning(
            "A publish is not confirmed; its like go over a channel of their own",
            extra={"exchange": key[0], "routing_key": key[1]},
        )
        now = asyncio.get_running_loop().time()
        self._dedicated[key] = WindowedChannel(ConfirmWindow(DEDICATED_WINDOW), used_at=now)
        return True

    def suspect_oldest(self) -> None:
        """Reserve, for after the reconnect, a channel for the routing key of each channel's oldest unconfirmed publish.

        The current connection answers nothing, and these publishes may be the cause.
        """
        for windowed in (*self._kinds.values(), *self._replaced):
            first = windowed.first
            if first is not None:
                self._dedicate((first.exchange, first.routing_key))

    def _close_idle(self) -> None:
        """Close the channels that gave way and are confirmed, and those of keys with nothing unconfirmed for 5 s."""
        now = asyncio.get_running_loop().time()
        for windowed in tuple(self._replaced):
            if windowed.first is None or now - windowed.opened_at > CHANNEL_DRAIN_SECONDS:
                self._replaced.remove(windowed)
                self._close(windowed)
        for key, windowed in tuple(self._dedicated.items()):
            if windowed.first is not None:
                windowed.used_at = now
            elif now - windowed.used_at > DEDICATED_SECONDS:
                del self._dedicated[key]
                self._close(windowed)

    def _close(self, windowed: WindowedChannel) -> None:
        if windowed.publisher_channel is not None:
            self._background.start(windowed.publisher_channel.close(), name="close a channel")


async def _give_back(publisher_channel: PublisherChannel) -> None:
    """Close a stuck channel after a second, which fails its unconfirmed publishes, so that callers repeat them."""
    await asyncio.sleep(STUCK_GRACE_SECONDS)
    await publisher_channel.close()


_FAILED: tuple[type[BaseException], ...] = (PublishRefused, PublishReturned, *LOST)
BACKOFF = Backoff(0.01, 0.5)


RestoreRoute = Callable[[str, str, bool], Awaitable[bool]]
"""A function that declares a missing exchange or binding again if this process declared it before.

It gets the exchange and routing key of a publish that found no queue, and whether the exchange exists. It returns
whether a retry is worthwhile, and raises a CoditectError when the declaration cannot be made now.
"""


@dataclass(slots=True, eq=False)
class _RetriedPublish(Publish):
    """A publish that is repeated until its outcome is known or its time is over, with what its tries have shown."""

    publisher: Publisher
    wait_when_full: bool
    placed: ConfirmWindow | None = None
    """The confirm window in which the publish holds a place; None without a place."""
    in_flight: bool = False
    unknown: bool = False
    refusals: int = 0
    blocked: bool = False
    astray: CoditectError | None = None
    """The error of a missing route: the message was returned, or the exchange does not exist."""
    astray_until: float = math.inf

    def succeed(self) -> None:
        """Set the publish's outcome to success, and count the publish no longer as unconfirmed."""
        self.leave()
        if not self.promise.done():
            self.promise.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Handle the error of the first try: set the publish's outcome, or repeat the publish in the background."""
        self.publisher.retry_or_fail(self, error)

    def leave(self) -> None:
        """Count the publish no longer as unconfirmed, so that another may be sent; idempotent."""
        if self.placed is not None:
            window, self.placed = self.placed, None
            window.leave()

    @property
    def may_be_there(self) -> bool:
        """Tell whether an earlier try may have put the message into a queue.

        RabbitMQ also refuses messages that a classic queue's process delivered but had not confirmed when it died.
        """
        return self.unknown or self.refusals > 0

    def lose(self) -> None:
        """Note that the channel or connection was lost: if the message was sent, the broker may or may not have it."""
        self.unknown = self.unknown or self.in_flight
        self.in_flight = False

    def verdict(self) -> CoditectError:
        """Return the error of a publish that is given up now: unconfirmed, unroutable, refused, or never sent."""
        facts = {"exchange": self.exchange, "routing_key": self.routing_key}
        if self.in_flight or self.unknown:
            return PublishUnconfirmed("No confirm in time; the message may still be delivered", **facts)
        if self.astray is not None:
            return self.astray
        if self.refusals or self.blocked or self.publisher.blocked:
            return Overloaded("The broker takes no more messages for now", **facts)
        return BrokerUnavailable("The broker could not be reached in time", url=self.publisher.address, **facts)


class Publisher:
    """The publisher of one connection: it retries publishes, and limits the unconfirmed ones of each channel."""

    def __init__(
        self, connection: RabbitConnection, background: Supervisor, *, window: int, restore_route: RestoreRoute
    ) -> None:
        self._restore_route = restore_route
        self._connection = connection
        self._background = background
        self._channels = PublishChannels(background, window=window)
        self._closed = False

    def open(self) -> None:
        """Start the background check for publishes that get no confirm; called on the event loop before any publish."""
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._connection.on_silence = self._channels.suspect_oldest
        watch = partial(self._channels.watch, self._connection.answers)
        self._background.keep(watch, name="watch publishes", critical=True)

    def close(self) -> None:
        """Stop all retries of publishes, which then fail, so that no caller is left waiting."""
        self._closed = True

    @property
    def address(self) -> str:
        """The broker's URL, without user, password and query."""
        return self._connection.address

    @property
    def blocked(self) -> bool:
        """Tell whether the broker holds up publishes: it has an alarm, or reads more slowly than they are written."""
        return self._connection.up and self._channels.held_up

    def publish(
        self,
        message: Message,
        *,
        exchange: str,
        routing_key: str,
        timeout_seconds: float = 30.0,
        wait_when_full: bool = True,
    ) -> Awaitable[None]:
        """Publish a message and return an awaitable of its confirm, as `Broker.publish`."""
        confirm = self._loop.create_future()
        until = self._now() + timeout_seconds
        attempt = _RetriedPublish(message, exchange, routing_key, confirm, until, self, wait_when_full)
        return confirm if self._sent_at_once(attempt) else self._repeat(attempt, pause_first=False)

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
        until = self._now() + timeout_seconds
        attempt = _RetriedPublish(message, exchange, routing_key, promise, until, self, wait_when_full)
        if not self._sent_at_once(attempt):
            self._repeat_in_background(attempt, self._repeat(attempt, pause_first=False))

    # -- at once ----------------------------------------------------------------------------------------

    def _sent_at_once(self, attempt: _RetriedPublish) -> bool:
        """Send a publish at once, or fail one that AMQP cannot carry; return False if channel or limit make it wait."""
        windowed = self._channels.of(attempt.exchange, attempt.routing_key)
        publisher_channel = windowed.publisher_channel
        if publisher_channel is None or not publisher_channel.ready or not windowed.window.enter_at_once():
            return False
        attempt.placed, attempt.in_flight = windowed.window, True
        try:
            publisher_channel.begin(attempt)
        except CoditectError as error:
            attempt.leave()
            attempt.promise.set_exception(error)
        except BaseException:
            attempt.leave()
            raise
        return True

    def retry_or_fail(self, attempt: _RetriedPublish, error: BaseException) -> None:
        """Set a publish's outcome after a failed first try, or repeat the publish in the background.

        A publish that is only late keeps its place in the limit: a channel that waits for a queue is sent no more.
        """
        if not isinstance(error, Late):
            attempt.leave()
        if attempt.promise.done():
            return
        try:
            self._record_failure(attempt, error)
            if self._closed:
                raise attempt.verdict()
        except CoditectError as verdict:
            attempt.promise.set_exception(verdict)
        else:
            self._repeat_in_background(attempt, self._repeat(attempt))

    def _repeat_in_background(self, attempt: _RetriedPublish, work: Coroutine[Any, Any, None]) -> None:
        repeating = self._background.start(work, name="publish", awaited=True)
        repeating.add_done_callback(partial(_set_outcome, attempt))
        if isinstance(attempt.promise, asyncio.Future):  # whoever waits for it may be canceled
            attempt.promise.add_done_callback(lambda _: repeating.cancel())

    def _record_failure(self, attempt: _RetriedPublish, error: BaseException) -> None:
        """Record the error of one try of a publish; return if a retry is worthwhile, else raise the final error."""
        if isinstance(error, Late):
            raise attempt.verdict() from error
        attempt.astray = None
        if isinstance(error, PublishReturned):
            attempt.in_flight = False
            facts = {"exchange": attempt.exchange, "routing_key": attempt.routing_key}
            self._mark_astray(attempt, Unroutable("No queue is bound to this key; nothing was taken", **facts))
            return
        if isinstance(error, PublishRefused):
            attempt.in_flight = False
            attempt.refusals += 1
            self._channels.refused(attempt.exchange, attempt.routing_key)
            if not attempt.wait_when_full:
                raise attempt.verdict() from error
            return
        about_us = refusal(error, entity=attempt.exchange or "amq.default") or oversize(
            error, size=len(attempt.message.body)
        )
        if isinstance(about_us, NotFound):
            attempt.in_flight = False
            self._mark_astray(attempt, about_us)
            return
        if about_us is not None:
            raise about_us from error
        attempt.lose()

    def _mark_astray(self, attempt: _RetriedPublish, why: CoditectError) -> None:
        """Record the error of a publish that finds no exchange or binding, and until when to retry the publish."""
        attempt.astray = why
        attempt.astray_until = min(attempt.astray_until, self._now() + ASTRAY_SECONDS)

    async def _find_route(self, attempt: _RetriedPublish, why: CoditectError) -> None:
        """Redeclare a missing exchange or binding if possible, and pause; raise the error `why` if a retry is useless.

        A retry is useless when no process is known to declare the route, or after `ASTRAY_SECONDS`.
        """
        try:
            worth = await self._restore_route(attempt.exchange, attempt.routing_key, not isinstance(why, NotFound))
        except CoditectError as error:
            log.info("A missing exchange or binding cannot be made yet", extra={"reason": str(error)})
            worth = True
        if not worth or self._now() > attempt.astray_until:
            raise why
        await asyncio.sleep(ASTRAY_PAUSE_SECONDS)

    # -- with patience ----------------------------------------------------------------------------------

    async def _repeat(self, attempt: _RetriedPublish, *, pause_first: bool = True) -> None:
        try:
            async with asyncio.timeout_at(attempt.until):
                if pause_first:
                    await self._pause(attempt)
                while not self._closed:
                    if await self._succeeded(attempt):
                        return
                    await self._pause(attempt)
        except TimeoutError as error:
            raise attempt.verdict() from error
        raise attempt.verdict()

    async def _succeeded(self, attempt: _RetriedPublish) -> bool:
        """Try a publish once, within the limit of unconfirmed publishes; return False when a retry is worthwhile."""
        windowed = self._channels.of(attempt.exchange, attempt.routing_key)
        await windowed.window.enter()
        attempt.placed = windowed.window
        try:
            return await self._sent(attempt, windowed)
        except asyncio.CancelledError:
            if canceled_by_us():
                raise
            attempt.lose()
        except _FAILED as error:
            self._record_failure(attempt, error)
        finally:
            attempt.leave()
        return False

    async def _sent(self, attempt: _RetriedPublish, windowed: WindowedChannel) -> bool:
        publisher_channel = windowed.publisher_channel
        if publisher_channel is None or publisher_channel.closed or not self._connection.up:
            publisher_channel = await windowed.opened(self._connection)
        if not await publisher_channel.wait_for_room():
            attempt.blocked = True
            return False
        attempt.in_flight = True
        message = sent_again(attempt.message) if attempt.may_be_there else attempt.message
        await publisher_channel.send(message, exchange=attempt.exchange, routing_key=attempt.routing_key)
        return True

    async def _pause(self, attempt: _RetriedPublish) -> None:
        if attempt.astray is not None:
            await self._find_route(attempt, attempt.astray)
        else:
            await asyncio.sleep(BACKOFF.pause(attempt.refusals + 1))


def _set_outcome(attempt: _RetriedPublish, repeating: asyncio.Task[None]) -> None:
    """Set a repeated publish's outcome on the caller's future (or similar object), unless it has one already."""
    attempt.leave()
    error = attempt.verdict() if repeating.cancelled() else repeating.exception()
    if error is None:
        Publish.succeed(attempt)
    else:
        Publish.fail(attempt, error)
