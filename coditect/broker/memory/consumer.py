"""A subscription that is there again after every loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context

from coditect.broker.memory.delivery import Hand, MemoryDelivery
from coditect.broker.memory.queue import QueueSubscription, Stored
from coditect.broker.memory.server import MemoryServer
from coditect.broker.port import OnDelivery
from coditect.errors import NotFound, SetupError

log = logging.getLogger(__name__)

RESUBSCRIBE_SECONDS = 0.1


class MemoryConsumer:
    """See `Consumer` of the port."""

    def __init__(
        self,
        server: MemoryServer,
        queue: str,
        on_delivery: OnDelivery,
        *,
        prefetch: int,
        on_lost: Callable[[], None] | None,
        exclusive: bool,
    ) -> None:
        self._server = server
        self._queue = queue
        self._on_delivery = on_delivery
        self._prefetch = prefetch
        self._on_lost = on_lost
        self._exclusive = exclusive
        self._hand = Hand()
        self._subscription: QueueSubscription | None = None
        self._connected = False
        self._ended = False
        self._context = copy_context()
        """The subscriber's: a delivery is its business, not the publisher's."""

    @property
    def queue(self) -> str:
        """The queue it consumes."""
        return self._queue

    @property
    def prefetch(self) -> int:
        """How many of its deliveries may be unsettled at once."""
        return self._prefetch

    @property
    def active(self) -> bool:
        """Whether the broker knows it right now."""
        return self._subscription is not None

    @property
    def unsettled(self) -> int:
        """How many of its deliveries are in hand."""
        return self._hand.size

    @property
    def ended(self) -> bool:
        """Whether it was canceled by us."""
        return self._ended

    @property
    def finished(self) -> bool:
        """Whether it was canceled by us and everything it delivered is settled."""
        return self._ended and self._hand.size == 0

    def subscribe(self) -> None:
        """The broker delivers to it from now on.

        Raises: NotFound without the queue; SetupError when another consumer excludes it.
        """
        self._connected = True
        queue = self._server.queue(self._queue)
        if not queue.admits(exclusive=self._exclusive):
            raise SetupError("Another consumer has the queue for itself", entity=self._queue)

        def deliver(stored: Stored) -> None:
            delivery = self._hand.take(stored, queue, subscription)
            asyncio.get_running_loop().call_soon(self._hand_over, delivery, context=self._context)

        subscription = QueueSubscription(deliver, self._canceled, self._prefetch, self._exclusive)
        self._subscription = subscription
        queue.subscribe(subscription)

    def resubscribe(self) -> None:
        """Subscribes if it is not; tries again later when it cannot."""
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
        """The connection is gone: no more deliveries."""
        self._connected = False
        self._unsubscribe()

    def lose(self, *, tell: bool) -> None:
        """What it held goes back; `on_lost` is told unless we ended it ourselves."""
        self._hand.lose()
        if tell:
            self._tell()

    def _tell(self) -> None:
        if self._on_lost is not None and not self._ended:
            self._on_lost()

    async def cancel(self) -> None:
        """See `Consumer.cancel`."""
        self._ended = True
        self._unsubscribe()
        await asyncio.sleep(0)  # what the broker had sent already arrives before the return
