"""A consumer channel that reads AMQP frames itself, and calls the receiver as soon as a delivery's bytes are read.

Settlements are written once per turn of the event loop; acks that are not urgent wait a moment for others.
"""

from __future__ import annotations

import asyncio

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from coditect.aio.supervisor import Supervisor
from coditect.broker.rabbitmq.connection.channels import CALL_SECONDS
from coditect.broker.rabbitmq.delivery import AmqpDelivery
from coditect.broker.rabbitmq.frames.codec import ContentAssembler, read_deliver, settle_frame
from coditect.broker.rabbitmq.frames.fields import read_message
from coditect.broker.rabbitmq.frames.stream import Stream
from coditect.broker.rabbitmq.path import Receiver
from coditect.broker.rabbitmq.settlements import Settlement, Settlements

LINGER_SECONDS = 0.03
"""The time for which an ack waits for other acks while no consumer needs its prefetch credit.

Each ack of a quorum queue is a write of the broker that is synced, and messages published meanwhile wait for it. So a
lone task's ack would hold up the next one, and a hop of a chain would take longer. A program that dies within that time
has a few more tasks repeated.
"""
SPARE_SHARE = 4
"""The divisor of the prefetch: while at most this share of it is unsettled, acks may wait for other acks."""


class DirectConsumerChannel:
    """A `ConsumerChannel` that reads deliveries and writes settlements as frames of its own."""

    def __init__(self, channel: Channel, stream: Stream) -> None:
        self.channel = channel
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._receivers: dict[bytes, Receiver] = {}
        self._contents = ContentAssembler(delivered=self._delivered, closing=self.lose)
        self.settlements = Settlements(self._write_soon)
        self._spare: int | None = None
        """The number of unsettled deliveries on the channel up to which acks wait for others."""
        self._lingering: asyncio.TimerHandle | None = None
        stream.attach(channel.number, self._contents)

    def start(self, background: Supervisor) -> None:
        """Do nothing, since the event loop's callbacks write the settlements."""

    async def consume(self, receiver: Receiver, *, tag: str, prefetch: int, exclusive: bool) -> None:
        """Start a consumer; its first delivery may come before this call returns."""
        self._receivers[tag.encode()] = receiver
        self._credit(prefetch)
        await self.channel.basic_qos(prefetch_count=prefetch, timeout=CALL_SECONDS)
        await self.channel.basic_consume(
            receiver.queue, _nothing_comes_here, consumer_tag=tag, exclusive=exclusive, timeout=CALL_SECONDS
        )

    def _credit(self, prefetch: int) -> None:
        spare = prefetch // SPARE_SHARE
        self._spare = spare if self._spare is None else min(self._spare, spare)

    async def cancel(self, tag: str) -> None:
        """Cancel a consumer at the broker; deliveries that come before the broker's answer still reach the consumer."""
        await self.channel.basic_cancel(tag, timeout=CALL_SECONDS)
        self.forget(tag)

    def forget(self, tag: str) -> None:
        """Pass no more deliveries to a consumer that the broker has canceled; requeue any that still come."""
        self._receivers.pop(tag.encode(), None)

    def lose(self) -> None:
        """Mark the channel as gone: its deliveries can no longer be settled; idempotent."""
        self._stream.detach(self.channel.number, self._contents)
        self.settlements.lose()
        self._linger_no_longer()

    def _delivered(self, method: bytes, header: bytes, body: bytes) -> None:
        consumer, tag, redelivered, exchange, routing_key = read_deliver(method)
        settlements = self.settlements
        if settlements.lost:
            return
        receiver = self._receivers.get(consumer)
        settlements.took(tag)
        if self._lingering is not None and not self._may_linger():
            self._hurry()
        if receiver is None:  # nobody wants it; a multiple ack must not cover it
            settlements.settle(tag, Settlement.REQUEUE)
            return
        receiver.deliver(
            AmqpDelivery(tag, redelivered, exchange, routing_key, receiver, settlements, read_message, header, body)
        )

    def _write_soon(self) -> None:
        if not self._may_linger():
            self._hurry()
        elif self._lingering is None:
            self._lingering = self._loop.call_later(LINGER_SECONDS, self._write)

    def _may_linger(self) -> bool:
        settlements = self.settlements
        return not settlements.pressing and self._spare is not None and settlements.outstanding <= self._spare

    def _hurry(self) -> None:
        self._linger_no_longer()
        self._loop.call_soon(self._write)

    def _linger_no_longer(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def _write(self) -> None:
        self._linger_no_longer()
        if not self.settlements.lost:
            number = self.channel.number
            self._stream.write([settle_frame(number, one) for one in self.settlements.decided()])
        self.settlements.written()


async def _nothing_comes_here(_: DeliveredMessage) -> None:
    """Do nothing: aiormq needs a callback for a consumer, but never calls it, since it does not see the deliveries."""
