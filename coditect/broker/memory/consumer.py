"""The in-memory consumer of a queue, which is restored after every loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

from coditect.aio.network import Way
from coditect.broker.memory.connection import MemoryConnection
from coditect.broker.memory.delivery import Hand, MemoryDelivery
from coditect.broker.memory.queue import QueueSubscription, Stored
from coditect.broker.port import OnDelivery
from coditect.errors import NotFound, SetupError

log = logging.getLogger(__name__)

RESUBSCRIBE_SECONDS = 0.1
CANCEL_SECONDS = 15.0


class MemoryConsumer:
    """The in-memory implementation of the interface `Consumer`."""

    def __init__(
        self,
        connection: MemoryConnection,
        queue: str,
        on_delivery: OnDelivery,
        *,
        prefetch: int,
        on_lost: Callable[[], None] | None,
        exclusive: bool,
    ) -> None:
        self._server = connection.server
        self._queue = queue
        self._on_delivery = on_delivery
        self._prefetch = prefetch
        self._on_lost = on_lost
        self._exclusive = exclusive
        self._hand = Hand(connection.path)
        self._subscription: QueueSubscription | None = None
        self._connected = False
        self._ended = False
        self._context = copy_context()
        """The context variables of the subscriber, in which the callback for deliveries runs."""

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
        return self._subscription is not None

    @property
    def unsettled(self) -> int:
        """The number of the consumer's deliveries that are not settled yet."""
        return self._hand.size

    @property
    def ended(self) -> bool:
        """Tell whether the process canceled the consumer."""
        return self._ended

    @property
    def finished(self) -> bool:
        """Tell whether the consumer is canceled and its deliveries are settled, and the broker knows of both."""
        return self._ended and not self.active and self._hand.empty

    def subscribe(self) -> None:
        """Start to consume the queue; deliveries begin at once.

        Raises:
            NotFound: when there is no such queue.
            SetupError: when an exclusive consumer has the queue.
        """
        self._connected = True
        queue = self._server.queue(self._queue)
        if not queue.admits(exclusive=self._exclusive):
            raise SetupError("Another consumer has the queue for itself", entity=self._queue)

        def deliver(stored: Stored) -> None:
            delivery = self._hand.take(stored, queue, subscription)
            self._hand.path.carry(Way.TO_CLIENT, lambda: self._arrive(delivery))

        subscription = QueueSubscription(deliver, self._canceled, self._prefetch, self._exclusive)
        self._subscription = subscription
        queue.subscribe(subscription)

    def resubscribe(self) -> None:
        """Start to consume again unless active or canceled; retry when the queue is missing or refuses the consumer."""
        if self._ended or self.active:
            return
        try:
            self.subscribe()
        except (NotFound, SetupError) as error:
            log.debug("A queue cannot be consumed yet", extra={"queue": self._queue, "reason": str(error)})
            self._resubscribe_later()

    def _resubscribe_later(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(RESUBSCRIBE_SECONDS, self._resubscribe_if_connected, context=self._context)

    def _resubscribe_if_connected(self) -> None:
        if self._connected:
            self.resubscribe()

    def _arrive(self, delivery: MemoryDelivery) -> None:
        asyncio.get_running_loop().call_soon(self._hand_over, delivery, context=self._context)

    def _hand_over(self, delivery: MemoryDelivery) -> None:
        if not delivery.lost:
            self._on_delivery(delivery)

    def _canceled(self) -> None:
        self._subscription = None
        self._tell()
        self._resubscribe_later()

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        queue = self._server.find(self._queue)
        if subscription is not None and queue is not None:
            queue.unsubscribe(subscription)

    def detach(self) -> None:
        """Stop deliveries, and attempts to subscribe again, because the connection was lost or closed."""
        self._connected = False
        self._unsubscribe()

    def lose(self, *, tell: bool) -> None:
        """Put unsettled deliveries back into the queue; with `tell`, call `on_lost` unless the consumer is canceled."""
        self._hand.lose()
        if tell:
            self._tell()

    def _tell(self) -> None:
        if self._on_lost is not None and not self._ended:
            self._on_lost()

    async def cancel(self) -> None:
        """Cancel the consumer; deliveries already sent arrive before the return, unless the network stays cut for 15 s.

        On a network that is cut or slow the call gives up after CANCEL_SECONDS, as with RabbitMQ.
        """
        self._ended = True
        path = self._hand.path
        with suppress(TimeoutError):
            async with asyncio.timeout(None if path.is_open else CANCEL_SECONDS):
                await path.travel(Way.TO_SERVER)
                self._unsubscribe()
                await path.travel(Way.TO_CLIENT)
        await asyncio.sleep(0)  # what the broker had sent already arrives before the return
