"""A delivery in hand; its message is read when it is asked for."""

from __future__ import annotations

from typing import Protocol

from aiormq.abc import DeliveredMessage

from coditect.broker.amqp.properties import from_properties
from coditect.broker.amqp.settle import Settlements, Verdict
from coditect.model.message import Message


class Source(Protocol):
    """Where a delivery came from: counts what is not settled yet."""

    unsettled: int

    @property
    def queue(self) -> str:
        """The queue's name."""


class AmqpDelivery:
    """See `Delivery` of the port."""

    __slots__ = ("_delivered", "_message", "_open", "_settlements", "_source", "tag")

    def __init__(self, delivered: DeliveredMessage, source: Source, settlements: Settlements) -> None:
        self._delivered = delivered
        self._source = source
        self._settlements = settlements
        self._message: Message | None = None
        self._open = True
        self.tag: int = delivered.delivery_tag or 0

    @property
    def message(self) -> Message:
        """What was published."""
        if self._message is None:
            self._message = from_properties(self._delivered.header.properties, self._delivered.body)
        return self._message

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self._source.queue

    @property
    def exchange(self) -> str:
        """The exchange it was last published or dead-lettered to."""
        return self._delivered.exchange or ""

    @property
    def routing_key(self) -> str:
        """The key it was last published with."""
        return self._delivered.routing_key or ""

    @property
    def redelivered(self) -> bool:
        """Whether the broker gave it to someone before."""
        return bool(self._delivered.redelivered)

    @property
    def delivery_count(self) -> int:
        """How often it came back to its quorum queue."""
        headers = self._delivered.header.properties.headers or {}
        count = headers.get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def lost(self) -> bool:
        """Whether its channel is gone."""
        return self._settlements.lost

    def ack(self) -> None:
        """It is done with."""
        self._settle(Verdict.ACK)

    def requeue(self) -> None:
        """It goes back unstarted."""
        self._settle(Verdict.REQUEUE)

    def reject(self) -> None:
        """It goes to the dead-letter exchange."""
        self._settle(Verdict.REJECT)

    def _settle(self, verdict: Verdict) -> None:
        if self._open and not self._settlements.lost:
            self._open = False
            self._source.unsettled -= 1
            self._settlements.settle(self.tag, verdict)
