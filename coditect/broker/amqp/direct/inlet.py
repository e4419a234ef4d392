"""Consuming by direct frames: deliveries in the very call that reads them, settlements once per turn of the loop."""

from __future__ import annotations

import asyncio

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from coditect.background import Background
from coditect.broker.amqp.channels import CALL_SECONDS
from coditect.broker.amqp.delivery import AmqpDelivery
from coditect.broker.amqp.direct.fields import read_message
from coditect.broker.amqp.direct.frames import Contents, read_deliver, settle_frame
from coditect.broker.amqp.direct.stream import Stream
from coditect.broker.amqp.path import Receiver
from coditect.broker.amqp.settle import Settlements, Verdict


class DirectInlet:
    """See `Inlet`."""

    def __init__(self, channel: Channel, stream: Stream) -> None:
        self.channel = channel
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._receivers: dict[bytes, Receiver] = {}
        self._contents = Contents(delivered=self._delivered, closing=self.lose)
        self.settlements = Settlements(self._write_soon)
        stream.attach(channel.number, self._contents)

    def start(self, background: Background) -> None:
        """Nothing to start: settlements are written by the loop."""

    async def consume(self, receiver: Receiver, *, tag: str, prefetch: int, exclusive: bool) -> None:
        """See `Inlet.consume`. The first delivery may come before the broker's answer is seen here."""
        self._receivers[tag.encode()] = receiver
        await self.channel.basic_qos(prefetch_count=prefetch, timeout=CALL_SECONDS)
        await self.channel.basic_consume(
            receiver.queue, _nothing_comes_here, consumer_tag=tag, exclusive=exclusive, timeout=CALL_SECONDS
        )

    async def cancel(self, tag: str) -> None:
        """See `Inlet.cancel`."""
        await self.channel.basic_cancel(tag, timeout=CALL_SECONDS)
        self.forget(tag)

    def forget(self, tag: str) -> None:
        """See `Inlet.forget`."""
        self._receivers.pop(tag.encode(), None)

    def lose(self) -> None:
        """The channel is gone."""
        self._stream.detach(self.channel.number, self._contents)
        self.settlements.lose()

    def _delivered(self, method: bytes, header: bytes, body: bytes) -> None:
        consumer, tag, redelivered, exchange, routing_key = read_deliver(method)
        settlements = self.settlements
        if settlements.lost:
            return
        receiver = self._receivers.get(consumer)
        settlements.took(tag)
        if receiver is None:  # nobody wants it; a multiple ack must not cover it
            settlements.settle(tag, Verdict.REQUEUE)
            return
        receiver.deliver(
            AmqpDelivery(tag, redelivered, exchange, routing_key, receiver, settlements, read_message, header, body)
        )

    def _write_soon(self) -> None:
        self._loop.call_soon(self._write)

    def _write(self) -> None:
        if not self.settlements.lost:
            number = self.channel.number
            self._stream.write([settle_frame(number, one) for one in self.settlements.decided()])
        self.settlements.written()


async def _nothing_comes_here(_: DeliveredMessage) -> None:
    """aiormq sees no delivery of this channel."""
