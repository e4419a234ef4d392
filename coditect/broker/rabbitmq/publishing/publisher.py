"""The publisher: publishes as `mandatory` and with confirms, limits unconfirmed publishes, and retries for a time.

A publish is sent at once where nothing holds it up (`PublisherChannel.begin`). A publish that is held up, or fails at
first, is repeated by a coroutine until its outcome is known or its time is over.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from coditect.aio.backoff import Backoff
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Promise
from coditect.broker.rabbitmq.connection.recovery import RabbitConnection
from coditect.broker.rabbitmq.errors import LOST, canceled_by_us, oversize, refusal
from coditect.broker.rabbitmq.path import Late, PublisherChannel, PublishRefused, PublishReturned
from coditect.broker.rabbitmq.publishing.channels import PublishChannels, WindowedChannel
from coditect.broker.rabbitmq.publishing.confirm_window import ConfirmWindow
from coditect.errors import BrokerUnavailable, CoditectError, NotFound, Overloaded, PublishUnconfirmed, Unroutable
from coditect.model.message import Message
from coditect.wire.tasks import sent_again

log = logging.getLogger(__name__)

_FAILED: tuple[type[BaseException], ...] = (PublishRefused, PublishReturned, *LOST)
BACKOFF = Backoff(0.01, 0.5)
ASTRAY_SECONDS = 15.0
"""The longest time that a publish waits for the process that owns a missing binding to declare it again."""
ASTRAY_PAUSE_SECONDS = 0.25


class Routes(Protocol):
    """The interface that restores the process's missing exchanges and bindings, for publishes that found no queue."""

    async def leads(self, exchange: str, routing_key: str, *, exists: bool) -> bool:
        """Redeclare the exchange or binding that a publish lacked if this process declared it; return whether to retry.

        All else that the process declared is redeclared, too. True also for the missing binding of a queue that exists,
        which its owner declares again.

        Raises:
            CoditectError: when the declaration cannot be made now.
        """


@dataclass(slots=True, eq=False)
class _PublishState:
    """The state of a publish, from its first try to its outcome."""

    publisher: Publisher
    message: Message
    exchange: str
    routing_key: str
    wait_when_full: bool
    until: float
    """The event loop's time at which the publish fails."""
    promise: Promise
    """The receiver of the publish's outcome."""
    returned: bool = False
    placed: ConfirmWindow | None = None
    """The confirm window in which the publish holds a place; None without a place."""
    in_flight: bool = False
    unknown: bool = False
    refusals: int = 0
    blocked: bool = False
    astray: CoditectError | None = None
    """The error of a missing route: the message was returned, or the exchange does not exist."""
    astray_until: float = math.inf

    def taken(self) -> None:
        """Set the publish's outcome to success: the broker has the message."""
        self.leave()
        if not self.promise.done():
            self.promise.set_result(None)

    def failed(self, error: BaseException) -> None:
        """Handle the error of the first try: set the publish's outcome, or repeat the publish in the background."""
        self.publisher.rescue(self, error)

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
        if self.refusals or self.blocked:
            return Overloaded("The broker takes no more messages for now", **facts)
        return BrokerUnavailable("The broker could not be reached in time", url=self.publisher.address, **facts)

    def unroutable(self) -> Unroutable:
        """Return the error for a message that the broker returned as unroutable."""
        return Unroutable(
            "No queue is bound to this key; nothing was taken", exchange=self.exchange, routing_key=self.routing_key
        )


class Publisher:
    """The publisher of one connection: it retries publishes, and limits the unconfirmed ones of each channel."""

    def __init__(self, connection: RabbitConnection, background: Supervisor, *, window: int, ways: Routes) -> None:
        self._ways = ways
        self._connection = connection
        self._background = background
        self._channels = PublishChannels(background, window=window)
        self._gated = 0
        self._closed = False

    def open(self) -> None:
        """Start the background check for publishes that get no confirm; called on the event loop before any publish."""
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._connection.on_silence = self._channels.accuse
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
        """Tell whether a publish waits now because of the broker's alarm, or because the broker reads slowly."""
        return self._gated > 0 and self._connection.up

    def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout_seconds: float, wait_when_full: bool
    ) -> Awaitable[None]:
        """Publish a message and return an awaitable of its confirm, as `Broker.publish`."""
        future = self._loop.create_future()
        attempt = _PublishState(
            self, message, exchange, routing_key, wait_when_full, self._now() + timeout_seconds, future
        )
        return future if self._begun(attempt) else self._repeat(attempt, pause_first=False)

    def post(
        self,
        message: Message,
        promise: Promise,
        *,
        exchange: str,
        routing_key: str,
        timeout_seconds: float,
        wait_when_full: bool,
    ) -> None:
        """Publish a message, and set success or error on `promise`, such as a future; see `Broker.post`."""
        attempt = _PublishState(
            self, message, exchange, routing_key, wait_when_full, self._now() + timeout_seconds, promise
        )
        if not self._begun(attempt):
            self._go_on(attempt, self._repeat(attempt, pause_first=False))

    # -- at once ----------------------------------------------------------------------------------------

    def _begun(self, attempt: _PublishState) -> bool:
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

    def rescue(self, attempt: _PublishState, error: BaseException) -> None:
        """Set a publish's outcome after a failed first try, or repeat the publish in the background.

        A publish that is only late keeps its place in the limit: a channel that waits for a queue is sent no more.
        """
        if not isinstance(error, Late):
            attempt.leave()
        if attempt.promise.done():
            return
        try:
            self._judge(attempt, error)
            if self._closed:
                raise attempt.verdict()
        except CoditectError as verdict:
            attempt.promise.set_exception(verdict)
        else:
            self._go_on(attempt, self._repeat(attempt))

    def _go_on(self, attempt: _PublishState, work: Coroutine[Any, Any, None]) -> None:
        going_on = self._background.start(work, name="publish", awaited=True)
        going_on.add_done_callback(lambda _: _pass_on(going_on, attempt))
        if isinstance(attempt.promise, asyncio.Future):  # whoever waits for it may be canceled
            attempt.promise.add_done_callback(lambda _: going_on.cancel())

    def _judge(self, attempt: _PublishState, error: BaseException) -> None:
        """Record the error of one try of a publish; return if a retry is worthwhile, else raise the final error."""
        if isinstance(error, Late):
            raise attempt.verdict() from error
        attempt.astray = None
        if isinstance(error, PublishReturned):
            attempt.in_flight = False
            self._go_astray(attempt, attempt.unroutable())
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
            self._go_astray(attempt, about_us)
            return
        if about_us is not None:
            raise about_us from error
        attempt.lose()

    def _go_astray(self, attempt: _PublishState, why: CoditectError) -> None:
        """Record the error of a publish that finds no exchange or binding, and until when to retry the publish."""
        attempt.astray = why
        attempt.astray_until = min(attempt.astray_until, self._now() + ASTRAY_SECONDS)

    async def _find_way(self, attempt: _PublishState, why: CoditectError) -> None:
        """Redeclare a missing exchange or binding if possible, and pause; raise the error `why` if a retry is useless.

        A retry is useless when no process is known to declare the route, or after `ASTRAY_SECONDS`.
        """
        exists = not isinstance(why, NotFound)
        try:
            worth = await self._ways.leads(attempt.exchange, attempt.routing_key, exists=exists)
        except CoditectError as error:
            log.info("A missing exchange or binding cannot be made yet", extra={"reason": str(error)})
            worth = True
        if not worth or self._now() > attempt.astray_until:
            raise why
        await asyncio.sleep(ASTRAY_PAUSE_SECONDS)

    # -- with patience ----------------------------------------------------------------------------------

    async def _repeat(self, attempt: _PublishState, *, pause_first: bool = True) -> None:
        try:
            async with asyncio.timeout_at(attempt.until):
                if pause_first:
                    await self._pause(attempt)
                while not self._closed:
                    if await self._taken(attempt):
                        return
                    await self._pause(attempt)
        except TimeoutError as error:
            raise attempt.verdict() from error
        raise attempt.verdict()

    async def _taken(self, attempt: _PublishState) -> bool:
        """Try a publish once, within the limit of unconfirmed publishes; return False when a retry is worthwhile."""
        windowed = self._channels.of(attempt.exchange, attempt.routing_key)
        await windowed.window.enter()
        attempt.placed = windowed.window
        try:
            return await self._tried(attempt, windowed)
        except asyncio.CancelledError:
            if canceled_by_us():
                raise
            attempt.lose()
        except _FAILED as error:
            self._judge(attempt, error)
        finally:
            attempt.leave()
        return False

    async def _tried(self, attempt: _PublishState, windowed: WindowedChannel) -> bool:
        publisher_channel = windowed.publisher_channel
        if publisher_channel is None or publisher_channel.closed or not self._connection.up:
            publisher_channel = await windowed.opened(self._connection)
        if not await self._open_gate(publisher_channel):
            attempt.blocked = True
            return False
        attempt.in_flight = True
        message = sent_again(attempt.message) if attempt.may_be_there else attempt.message
        await publisher_channel.send(message, exchange=attempt.exchange, routing_key=attempt.routing_key)
        return True

    async def _open_gate(self, publisher_channel: PublisherChannel) -> bool:
        """Wait, at most 0.5 s, while the broker has an alarm or reads slowly; return whether publishing may go on."""
        self._gated += 1
        try:
            return await publisher_channel.gate()
        finally:
            self._gated -= 1

    async def _pause(self, attempt: _PublishState) -> None:
        if attempt.astray is not None:
            await self._find_way(attempt, attempt.astray)
        else:
            await asyncio.sleep(BACKOFF.pause(attempt.refusals + 1))


def _pass_on(again: asyncio.Task[None], attempt: _PublishState) -> None:
    """Set a repeated publish's outcome on the caller's future (or similar object), unless it has one already."""
    attempt.leave()
    error = attempt.verdict() if again.cancelled() else again.exception()
    if attempt.promise.done():
        return
    if error is None:
        attempt.promise.set_result(None)
    else:
        attempt.promise.set_exception(error)
