"""A process's connection to a `MemoryServer`: the in-memory implementation of the interface `Broker`."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, assert_never

from coditect.aio.network import NetworkPath, Way
from coditect.aio.supervisor import Health, Supervisor
from coditect.broker.memory.queue import Hand, MemoryDelivery, QueueSubscription, Stored
from coditect.broker.memory.server import MemoryServer, RoutedMessage, RouteVerdict, Session
from coditect.broker.port import (
    ASTRAY_PAUSE_SECONDS,
    ASTRAY_SECONDS,
    Consumer,
    Delivery,
    OnDelivery,
    Promise,
    QueueStats,
    ServerInfo,
)
from coditect.broker.topology import Binding, Topology
from coditect.errors import (
    BrokerUnavailable,
    CoditectError,
    NotFound,
    Overloaded,
    PublishUnconfirmed,
    SetupError,
    Unroutable,
)
from coditect.model.message import Message
from coditect.wire import routing
from coditect.wire.tasks import sent_again

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.05
NOTICED_SECONDS = 2.0
"""The time after which a process notices that no answers arrive on its open connection, as with RabbitMQ."""


RESUBSCRIBE_SECONDS = 0.1
CONSUMER_CANCEL_SECONDS = 15.0


class MemoryConsumer:
    """The in-memory implementation of the interface `Consumer`."""

    def __init__(
        self,
        server: MemoryServer,
        path: NetworkPath,
        queue: str,
        on_delivery: OnDelivery,
        *,
        prefetch: int,
        on_lost: Callable[[], None] | None,
        exclusive: bool,
    ) -> None:
        self._server = server
        self.queue = queue
        """The name of the consumed queue."""
        self._on_delivery = on_delivery
        self.prefetch = prefetch
        """The number of the consumer's deliveries that may be unsettled at once."""
        self._on_lost = on_lost
        self._exclusive = exclusive
        self._hand = Hand(path)
        self._subscription: QueueSubscription | None = None
        self._retry: asyncio.TimerHandle | None = None
        """The timer of the next attempt to subscribe again."""
        self.ended = False
        """Whether the process canceled the consumer."""
        self._context = copy_context()
        """The context variables of the subscriber, in which the callback for deliveries runs."""

    @property
    def active(self) -> bool:
        """Tell whether the consumer is registered at the broker right now."""
        return self._subscription is not None

    @property
    def unsettled(self) -> int:
        """The number of the consumer's deliveries that are not settled yet."""
        return self._hand.size

    @property
    def finished(self) -> bool:
        """Tell whether the consumer is canceled and its deliveries are settled, and the broker knows of both."""
        return self.ended and not self.active and self._hand.empty

    def subscribe(self) -> None:
        """Start to consume the queue; deliveries begin at once.

        Raises:
            NotFound: when there is no such queue.
            SetupError: when an exclusive consumer has the queue.
        """
        queue = self._server.queue(self.queue)
        if not queue.admits(exclusive=self._exclusive):
            raise SetupError("Another consumer has the queue for itself", entity=self.queue)

        def deliver(stored: Stored) -> None:
            delivery = self._hand.take(stored, queue, subscription)
            call_soon = asyncio.get_running_loop().call_soon
            arrive = partial(call_soon, self._hand_over, delivery, context=self._context)
            self._hand.path.carry(Way.TO_CLIENT, arrive)

        subscription = QueueSubscription(deliver, self._canceled, self.prefetch, self._exclusive)
        self._subscription = subscription
        queue.subscribe(subscription)

    def resubscribe(self) -> None:
        """Start to consume again unless active or canceled; retry when the queue is missing or refuses the consumer."""
        if self.ended or self.active:
            return
        try:
            self.subscribe()
        except (NotFound, SetupError) as error:
            log.debug("A queue cannot be consumed yet", extra={"queue": self.queue, "reason": str(error)})
            self._resubscribe_later()

    def _resubscribe_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(RESUBSCRIBE_SECONDS, self.resubscribe, context=self._context)

    def _hand_over(self, delivery: MemoryDelivery) -> None:
        if not delivery.lost:
            self._on_delivery(delivery)

    def _canceled(self) -> None:
        self._subscription = None
        self._resubscribe_later()  # before anybody is told, who may close the connection
        self._tell()

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        queue = self._server.find(self.queue)
        if subscription is not None and queue is not None:
            queue.unsubscribe(subscription)

    def detach(self) -> None:
        """Stop deliveries, and attempts to subscribe again, because the connection was lost or closed."""
        if self._retry is not None:
            self._retry.cancel()
        self._unsubscribe()

    def lose(self, *, tell: bool) -> None:
        """Put unsettled deliveries back into the queue; with `tell`, call `on_lost` unless the consumer is canceled."""
        self._hand.lose()
        if tell:
            self._tell()

    def _tell(self) -> None:
        if self._on_lost is not None and not self.ended:
            self._on_lost()

    async def cancel(self) -> None:
        """Cancel the consumer; deliveries already sent arrive before the return, unless the network stays cut for 15 s.

        On a network that is cut or slow the call gives up after CANCEL_SECONDS, as with RabbitMQ.
        """
        self.ended = True
        path = self._hand.path
        with suppress(TimeoutError):
            async with asyncio.timeout(None if path.is_open else CONSUMER_CANCEL_SECONDS):
                await path.travel(Way.TO_SERVER)
                self._unsubscribe()
                await path.travel(Way.TO_CLIENT)
        await asyncio.sleep(0)  # what the broker had sent already arrives before the return


MEMORY_CALL_SECONDS = 15.0
MEMORY_RETRY_SECONDS = 0.01


@dataclass(slots=True)
class _RoutedPublish:
    """The state of one publish, from its first try to its outcome."""

    publication: RoutedMessage
    wait_when_full: bool
    unknown: bool = False
    held_back: bool = False
    """Whether a full queue refused the message or an alarm stopped it, so that the broker does not have it."""
    astray: CoditectError | None = None
    """The error of a missing route: no exchange, or no bound queue."""
    astray_until: float = math.inf

    def error(self) -> CoditectError:
        """Return a timed-out publish's error: outcome unknown, no exchange or binding, refused, or no connection."""
        facts = {"exchange": self.publication.exchange, "routing_key": self.publication.routing_key}
        if self.unknown:
            return PublishUnconfirmed("No confirm in time; the message may still be delivered", **facts)
        if self.astray is not None:
            return self.astray
        if self.held_back:
            return Overloaded("The broker refused the message until the time was over", **facts)
        return BrokerUnavailable("The broker could not be reached in time", **facts)


class MemoryBroker:
    """The in-memory implementation of the interface `Broker`, for one process."""

    def __init__(self, server: MemoryServer, *, name: str = "coditect") -> None:
        self.name = name
        self._server = server
        self._topology = Topology()
        self._consumers: list[MemoryConsumer] = []
        self.health = Health()
        """The health of the broker's background loops, of which there are none."""
        self._background = Supervisor(self.health)
        self._check: Callable[[], Awaitable[None]] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        """Whether the connection is open and restored."""
        self._closed = False
        self.path = NetworkPath(context=server.context, changed=self._cut_or_healed)
        """The simulated network to the broker; a cut both ways breaks the connection, a cut one way leaves it open."""
        self._silent = False
        """Whether the process has noticed that no answers arrive."""
        self._noticing: asyncio.TimerHandle | None = None
        self._losses = 0
        self._context = copy_context()
        self._session = Session(self._broken, name, lambda: self._server.declare(self._topology))
        self._browsed = Hand(self.path)

    async def __aenter__(self) -> Self:
        self._open()
        try:
            await self._answered()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.vanish()
        await self._background.close()

    @property
    def server(self) -> ServerInfo:
        """The in-memory broker's product and version, "Memory" and (3, 10, 8); it has no certificate."""
        return self._server.info

    @property
    def connected(self) -> bool:
        """Tell whether the connection is open, the broker answers and every consumer is active."""
        held = (consumer for consumer in self._consumers if not consumer.ended)
        return self._up.is_set() and self.answering and all(consumer.active for consumer in held)

    @property
    def answering(self) -> bool:
        """Tell whether the broker answers; False once the process has noticed that no answers arrive."""
        return not self._silent

    @property
    def blocked(self) -> bool:
        """Tell whether the broker's alarm holds up this process's publishes; False until the process tries one."""
        return self._up.is_set() and not self._session.open.is_set()

    def drop(self) -> None:
        """Break the connection, as a network fault would, for tests; it is opened again."""
        if self._up.is_set():
            self._server.disconnect(self._session)
            self._broken()

    def vanish(self) -> None:
        """Close the connection for good without calling `on_lost`; unsettled messages return to their queues."""
        self._close()
        self._let_go(tell=False)

    # -- the connection ---------------------------------------------------------------------------------

    def _open(self) -> None:
        """Connect now, or as soon as the broker accepts connections."""
        self._context = copy_context()  # whoever breaks the connection, it is ours to stand again
        self._server.when_up(self._connect)

    def _close(self) -> None:
        self._closed = True
        self._up.clear()
        self._server.disconnect(self._session)

    def _connect(self) -> None:
        if self._closed or self._up.is_set():
            return
        if self.path.cut:
            self._open_later()
            return
        if not self._server.connect(self._session):
            return
        try:
            self._restore()
        except CoditectError as error:
            log.warning("The broker's entities cannot be restored yet", extra={"reason": str(error)})
            self._server.disconnect(self._session)
            self._open_later()
        else:
            self._up.set()

    def _open_later(self) -> None:
        asyncio.get_running_loop().call_later(RECONNECT_SECONDS, self._open, context=self._context)

    def _cut_or_healed(self) -> None:
        if self._noticing is not None:
            self._noticing.cancel()
        self._silent = len(self.path.cut) == len(Way)
        if self._silent:
            self.drop()
        elif self.path.cut:
            loop = asyncio.get_running_loop()
            self._noticing = loop.call_later(NOTICED_SECONDS, self._notice, context=self._context)

    def _notice(self) -> None:
        self._silent = True

    def _broken(self) -> None:
        self._losses += 1
        self._up.clear()
        self._let_go(tell=True)
        self._open_later()

    async def _offer(self, publication: RoutedMessage) -> RouteVerdict:
        """Publish a message, and return the broker's answer; LOST when the connection broke before the answer.

        Raises:
            NotFound, SetupError, InvalidTask: as `MemoryServer.offer`.
        """
        losses = self._losses
        await self.path.travel(Way.TO_SERVER)
        if losses != self._losses:
            return RouteVerdict.LOST
        verdict = await asyncio.shield(self._server.offer(self._session, publication))
        await self.path.travel(Way.TO_CLIENT)
        return verdict if losses == self._losses else RouteVerdict.LOST

    async def _opened(self) -> None:
        """Wait without limit until the connection is open.

        Raises:
            BrokerUnavailable: when the connection was closed for good.
        """
        self._refuse_closed()
        await self._up.wait()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BrokerUnavailable("The connection to the broker is closed")

    # -- what is restored and lost with it --------------------------------------------------------------

    def _restore(self) -> None:
        self._server.declare(self._topology)
        for consumer in self._consumers:
            consumer.resubscribe()
        if self._check is not None:
            self._checking = self._background.start(self._checked(self._check), name="check the broker")

    async def _checked(self, check: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await check()
            except CoditectError as error:
                log.info("A returned broker could not be checked yet", extra={"reason": str(error)})
                await self._pause()

    def _let_go(self, *, tell: bool) -> None:
        self._consumers = [consumer for consumer in self._consumers if not consumer.finished]
        for consumer in self._consumers:
            consumer.detach()
        for consumer in tuple(self._consumers):
            consumer.lose(tell=tell)
        self._browsed.lose()

    async def _answered(self) -> None:
        try:
            async with asyncio.timeout(MEMORY_CALL_SECONDS):
                await self._opened()
                for way in Way:
                    await self.path.travel(way)
                await self._opened()
        except TimeoutError as error:
            raise BrokerUnavailable("The broker cannot be reached", name=self.name) from error

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        """Declare exchanges, queues and bindings now and after each reconnect, but queues marked `once` only now.

        `lazily` has no effect.
        """
        await self._answered()
        self._server.declare(topology)
        self._topology += topology.lasting

    def on_reconnect(self, check: Callable[[], Awaitable[None]]) -> None:
        """Set a function to run on each new connection, and again if it raises CoditectError; publishes wait for it."""
        self._check = check

    async def publish(
        self,
        message: Message,
        *,
        exchange: str,
        routing_key: str,
        timeout_seconds: float = 30.0,
        wait_when_full: bool = True,
    ) -> None:
        """Publish a message and wait for the confirm, as `Broker.publish`; retry until the timeout if that can help."""
        attempt = _RoutedPublish(RoutedMessage(message, exchange, routing_key), wait_when_full)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await self._taken(attempt):
                    await self._pause()
        except TimeoutError as error:
            raise attempt.error() from error

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
        """Publish a message in the background; `promise`, such as a future, gets the success or the error."""
        publishing = self.publish(
            message,
            exchange=exchange,
            routing_key=routing_key,
            timeout_seconds=timeout_seconds,
            wait_when_full=wait_when_full,
        )
        work = self._background.start(publishing, name="publish", awaited=True)
        work.add_done_callback(partial(_tell, promise))

    async def _pause(self) -> None:
        await asyncio.sleep(MEMORY_RETRY_SECONDS)

    async def _ready(self) -> None:
        """Wait without limit until the connection is open and checked, and no alarm stops publishes.

        Raises:
            BrokerUnavailable: when the connection was closed for good.
        """
        await self._unblocked()
        while self._checking is not None and not self._checking.done():
            await asyncio.wait((self._checking,))
            await self._unblocked()

    async def _unblocked(self) -> None:
        while not (self._up.is_set() and self._session.open.is_set()):
            await self._opened()
            await self._session.open.wait()
        self._refuse_closed()

    async def _taken(self, attempt: _RoutedPublish) -> bool:
        """Try a publish once; return True when the broker took it, False to try again; raise if no retry can help."""
        attempt.held_back = attempt.held_back or self.blocked
        await self._ready()
        attempt.astray = None
        publication = attempt.publication
        if attempt.unknown:
            publication = replace(publication, message=sent_again(publication.message))
        before, attempt.unknown = attempt.unknown, True
        try:
            verdict = await self._offer(publication)
        except NotFound as error:
            attempt.unknown = before
            return await self._found_way(attempt, error)
        match verdict:
            case RouteVerdict.TAKEN:
                await asyncio.sleep(0)
                return True
            case RouteVerdict.LOST:
                return False
            case RouteVerdict.UNROUTABLE:
                attempt.unknown = before
                facts = {"exchange": attempt.publication.exchange, "routing_key": attempt.publication.routing_key}
                why = Unroutable("No queue is bound to this key; nothing was taken", **facts)
                return await self._found_way(attempt, why)
            case RouteVerdict.REFUSED:
                attempt.unknown, attempt.held_back = before, True
                if not attempt.wait_when_full:
                    raise Overloaded("The queue is full", routing_key=attempt.publication.routing_key)
                return False
            case _:
                assert_never(verdict)

    async def _found_way(self, attempt: _RoutedPublish, why: CoditectError) -> bool:
        """Make every process redeclare what it declared, and return False to retry; raise `why` if that cannot help.

        Raises:
            CoditectError: the error `why`, when no process is known to declare what the publish lacks, or after 15 s.
        """
        now = asyncio.get_running_loop().time()
        attempt.astray, attempt.astray_until = why, min(attempt.astray_until, now + ASTRAY_SECONDS)
        publication = attempt.publication
        if isinstance(why, NotFound):
            worth = self._topology.has_exchange(publication.exchange)
        else:
            queue = routing.queue_for(publication.exchange, publication.routing_key)
            worth = queue is not None and self._server.find(queue) is not None
            worth = worth or self._topology.binds(publication.exchange, publication.routing_key)
        if not worth or now > attempt.astray_until:
            raise why
        await asyncio.sleep(ASTRAY_PAUSE_SECONDS)
        self._server.restore_all()
        return False

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
        """Start a consumer of a queue; `group` has no effect, since the connection is the only channel."""
        await self._answered()
        consumer = MemoryConsumer(
            self._server, self.path, queue, on_delivery, prefetch=prefetch, on_lost=on_lost, exclusive=exclusive
        )
        consumer.subscribe()
        self._consumers.append(consumer)
        return consumer

    async def get(self, queue: str) -> Delivery | None:
        """Fetch one message of a queue for inspection, as `basic.get`; None when the queue is empty."""
        await self._answered()
        give_up = asyncio.get_running_loop().time() + MEMORY_CALL_SECONDS
        while self._server.is_silent(queue):
            if asyncio.get_running_loop().time() > give_up:
                raise BrokerUnavailable("The queue does not answer", queue=queue)
            await self._pause()
        source = self._server.queue(queue)
        stored = source.take()
        return None if stored is None else self._browsed.take(stored, source, None)

    async def release(self) -> None:
        """Put all unsettled messages that `get` fetched back into their queues."""
        self._browsed.lose()

    async def stats(self, queue: str) -> QueueStats | None:
        """Return a queue's number of ready messages and number of consumers; None when the queue does not exist."""
        await self._answered()
        found = self._server.find(queue)
        if found is None:
            return None
        found.used()
        return found.stats

    async def unbind(self, binding: Binding) -> None:
        """Remove a binding, and do not declare it again after a reconnect; idempotent."""
        await self._answered()
        self._topology = self._topology.without_binding(binding)
        self._server.exchanges.unbind(binding)

    async def delete_queue(self, queue: str, *, if_empty: bool = False, classic: bool = False) -> None:
        """Delete a queue with its messages and bindings; idempotent. With `if_empty`, keep one with ready messages."""
        await self._answered()
        found = self._server.find(queue)
        if found is None or (if_empty and found.stats.messages):
            return
        self._server.delete_queue(queue)
        self._topology = self._topology.without({queue})


def _tell(promise: Promise, publishing: asyncio.Task[None]) -> None:
    error = BrokerUnavailable("The broker was closed") if publishing.cancelled() else publishing.exception()
    if promise.done():
        return
    if error is None:
        promise.set_result(None)
    else:
        promise.set_exception(error)
