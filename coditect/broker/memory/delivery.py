"""In-memory deliveries: messages that a process holds until it settles them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coditect.aio.network import NetworkPath, Way
from coditect.broker.memory.queue import MemoryQueue, QueueSubscription, Stored
from coditect.broker.topology import QueueType
from coditect.model.message import Message


class Hand:
    """The unsettled deliveries of one consumer, or of one process's fetches with `get`."""

    def __init__(self, path: NetworkPath) -> None:
        self.path = path
        """The simulated network path to the broker."""
        self._held: dict[MemoryDelivery, None] = {}
        self._settled: dict[MemoryDelivery, None] = {}
        """The settled deliveries whose settlement has not reached the broker yet."""

    @property
    def size(self) -> int:
        """The number of unsettled deliveries."""
        return len(self._held)

    @property
    def empty(self) -> bool:
        """Tell whether every delivery is settled, and the broker has received each settlement."""
        return not self._held and not self._settled

    def take(self, stored: Stored, queue: MemoryQueue, subscription: QueueSubscription | None) -> MemoryDelivery:
        """Add a message as a new unsettled delivery, and return the delivery."""
        delivery = MemoryDelivery(self, stored, queue, subscription)
        self._held[delivery] = None
        return delivery

    def settle(self, delivery: MemoryDelivery, tell: Callable[[], None]) -> None:
        """Settle a delivery, and call `tell` when the settlement reaches the broker; idempotent."""
        if delivery not in self._held:
            return
        del self._held[delivery]
        self._settled[delivery] = None
        self.path.carry(Way.TO_SERVER, lambda: self._told(delivery, tell))

    def _told(self, delivery: MemoryDelivery, tell: Callable[[], None]) -> None:
        if delivery in self._settled:
            del self._settled[delivery]
            tell()

    def lose(self) -> None:
        """Mark each delivery whose settlement has not reached the broker as lost, and requeue its message."""
        held, self._held, self._settled = {**self._held, **self._settled}, {}, {}
        for delivery in held:
            delivery.lost = True
        for delivery in held:
            delivery.give_back()


class MemoryDelivery:
    """The in-memory implementation of the interface `Delivery`."""

    __slots__ = ("_hand", "_queue", "_returns", "_stored", "_subscription", "lost", "message")

    def __init__(self, hand: Hand, stored: Stored, queue: MemoryQueue, subscription: QueueSubscription | None) -> None:
        self._hand = hand
        self._stored = stored
        self._returns = stored.returns
        self._queue = queue
        self._subscription = subscription
        self.lost = False
        self.message = _counted(stored.message, self.delivery_count)

    @property
    def queue(self) -> str:
        """The name of the queue that delivered the message."""
        return self._queue.declared.name

    @property
    def exchange(self) -> str:
        """The exchange to which the message was last published or dead-lettered."""
        return self._stored.exchange

    @property
    def routing_key(self) -> str:
        """The routing key with which the message was last published or dead-lettered."""
        return self._stored.routing_key

    @property
    def redelivered(self) -> bool:
        """Tell whether the broker delivered the message before."""
        return self._returns > 0

    @property
    def delivery_count(self) -> int:
        """The number of the message's returns to its quorum queue; 0 for a classic queue, which does not count."""
        return self._returns if self._queue.declared.type is QueueType.QUORUM else 0

    def ack(self) -> None:
        """Ack the delivery as done; without effect when it is settled already."""
        self._hand.settle(self, lambda: self._queue.ack(self._stored, self._subscription))

    def requeue(self) -> None:
        """Put the message back into its queue; without effect when the delivery is settled already."""
        self._hand.settle(self, lambda: self._queue.requeue(self._stored, self._subscription))

    def reject(self) -> None:
        """Send the message to the queue's dead-letter exchange, or drop it without one; no effect when settled."""
        self._hand.settle(self, lambda: self._queue.reject(self._stored, self._subscription))

    def give_back(self) -> None:
        """Put the message back into its queue, because the connection was lost or the process released it."""
        self._queue.requeue(self._stored, self._subscription)


def _counted(message: Message, count: int) -> Message:
    if count == 0:
        return message
    return replace(message, headers={**message.headers, "x-delivery-count": count})
