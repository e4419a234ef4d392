"""A delivery in hand; its message is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from coditect.broker.rabbitmq.settlements import Settlement, Settlements
from coditect.model.message import Message


class Source(Protocol):
    """Where a delivery came from: counts what is not settled yet."""

    unsettled: int

    @property
    def queue(self) -> str:
        """The queue's name."""


@dataclass(slots=True, eq=False)
class AmqpDelivery:
    """See `Delivery` of the port."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    source: Source
    settlements: Settlements
    read: Callable[[Any, bytes], Message]
    """Makes the message of header and body, once it is asked for."""
    header: Any
    """As the wire path has it."""
    body: bytes
    _message: Message | None = None
    _open: bool = True

    @property
    def message(self) -> Message:
        """What was published."""
        if self._message is None:
            self._message = self.read(self.header, self.body)
        return self._message

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self.source.queue

    @property
    def delivery_count(self) -> int:
        """How often it came back to its quorum queue."""
        if not self.redelivered:
            return 0  # RabbitMQ 4 passes on what the publisher wrote there, until it has a count of its own
        count = self.message.headers.get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def lost(self) -> bool:
        """Whether its channel is gone."""
        return self.settlements.lost

    def ack(self) -> None:
        """It is done with."""
        self._settle(Settlement.ACK)

    def requeue(self) -> None:
        """It goes back unstarted."""
        self._settle(Settlement.REQUEUE)

    def reject(self) -> None:
        """It goes to the dead-letter exchange."""
        self._settle(Settlement.REJECT)

    def _settle(self, verdict: Settlement) -> None:
        if self._open and not self.settlements.lost:
            self._open = False
            self.source.unsettled -= 1
            self.settlements.settle(self.tag, verdict)
