"""A delivery from RabbitMQ, whose message is decoded when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from coditect.broker.rabbitmq.settlements import ACK, Settlement, Settlements
from coditect.model.message import Message


class Source(Protocol):
    """The consumer or fetch that a delivery came from, which counts its unsettled deliveries."""

    unsettled: int

    @property
    def queue(self) -> str:
        """The name of the queue that the deliveries come from."""


@dataclass(slots=True, eq=False)
class AmqpDelivery:
    """The RabbitMQ implementation of the interface `Delivery`."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    source: Source
    settlements: Settlements
    read: Callable[[bytes, bytes], Message]
    """The function that decodes the content header and body into a message."""
    header: bytes
    """The payload of the message's AMQP content header."""
    body: bytes
    _message: Message | None = None
    _open: bool = True

    @property
    def message(self) -> Message:
        """The delivered message, decoded on the first access."""
        if self._message is None:
            self._message = self.read(self.header, self.body)
        return self._message

    @property
    def queue(self) -> str:
        """The name of the queue that delivered the message."""
        return self.source.queue

    @property
    def delivery_count(self) -> int:
        """The number of the message's returns to its quorum queue; 0 when the broker does not report it."""
        if not self.redelivered:
            return 0  # RabbitMQ 4 passes on what the publisher wrote there, until it has a count of its own
        count = self.message.headers.get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def lost(self) -> bool:
        """Tell whether the delivery's channel is gone, so that the delivery can no longer be settled."""
        return self.settlements.lost

    def ack(self) -> None:
        """Ack the delivery as done; one frame may carry the acks of several deliveries."""
        self._settle(ACK)

    def requeue(self) -> None:
        """Put the message back into its queue, so that the broker delivers it again."""
        self._settle(Settlement.REQUEUE)

    def reject(self) -> None:
        """Reject the message: it goes to the queue's dead-letter exchange, or is dropped if the queue has none."""
        self._settle(Settlement.REJECT)

    def _settle(self, verdict: Settlement) -> None:
        if self._open and not self.settlements.lost:
            self._open = False
            self.source.unsettled -= 1
            self.settlements.settle(self.tag, verdict)
