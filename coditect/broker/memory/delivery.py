"""A message in one process's hand."""

from __future__ import annotations

from dataclasses import replace

from coditect.broker.memory.queue import MemoryQueue, QueueSubscription, Stored
from coditect.broker.topology import QueueType
from coditect.model.message import Message


class Hand:
    """The unsettled deliveries of one consumer or browser."""

    def __init__(self) -> None:
        self._held: dict[MemoryDelivery, None] = {}

    @property
    def size(self) -> int:
        """How many are left to settle."""
        return len(self._held)

    def take(self, stored: Stored, queue: MemoryQueue, subscription: QueueSubscription | None) -> MemoryDelivery:
        """Another one in hand."""
        delivery = MemoryDelivery(self, stored, queue, subscription)
        self._held[delivery] = None
        return delivery

    def let_go(self, delivery: MemoryDelivery) -> bool:
        """Whether it was in hand until now."""
        if delivery in self._held:
            del self._held[delivery]
            return True
        return False

    def lose(self) -> None:
        """The connection is gone: the broker takes everything back, the last first."""
        held, self._held = self._held, {}
        for delivery in held:
            delivery.lost = True
        for delivery in held:
            delivery.give_back()


class MemoryDelivery:
    """See `Delivery` of the port. Settled at once."""

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
        """The queue it came from."""
        return self._queue.declared.name

    @property
    def exchange(self) -> str:
        """The exchange it was last published or dead-lettered to."""
        return self._stored.exchange

    @property
    def routing_key(self) -> str:
        """The key it was last published with."""
        return self._stored.routing_key

    @property
    def redelivered(self) -> bool:
        """Whether somebody had it before."""
        return self._returns > 0

    @property
    def delivery_count(self) -> int:
        """How often it came back to its quorum queue; 0 for a classic queue, which does not count."""
        return self._returns if self._queue.declared.type is QueueType.QUORUM else 0

    def ack(self) -> None:
        """It is done with."""
        if self._hand.let_go(self):
            self._queue.ack(self._stored, self._subscription)

    def requeue(self) -> None:
        """It goes back to its place."""
        if self._hand.let_go(self):
            self._queue.requeue(self._stored, self._subscription)

    def reject(self) -> None:
        """It goes to the queue's dead-letter exchange."""
        if self._hand.let_go(self):
            self._queue.reject(self._stored, self._subscription)

    def give_back(self) -> None:
        """The broker takes it out of a lost connection's hand."""
        self._queue.requeue(self._stored, self._subscription)


def _counted(message: Message, count: int) -> Message:
    if count == 0:
        return message
    return replace(message, headers={**message.headers, "x-delivery-count": count})
