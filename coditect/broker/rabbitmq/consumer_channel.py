"""A consumer channel that reads AMQP frames itself, and calls the receiver as soon as a delivery's bytes are read.

Settlements are written once per turn of the event loop; acks that are not urgent wait a moment for others.

Finished deliveries at the head of the channel leave as one `multiple` ack; deliveries behind an unsettled one are
acked singly, so a slow task never holds back its neighbors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from coditect.broker.port import OnDelivery
from coditect.broker.rabbitmq.channels import CHANNEL_CALL_SECONDS
from coditect.broker.rabbitmq.codec import ACK, ContentAssembler, SettledRange, Settlement, read_deliver, settle_frame
from coditect.broker.rabbitmq.fields import read_message
from coditect.broker.rabbitmq.stream import Stream
from coditect.model.message import Message

log = logging.getLogger(__name__)

LINGER_SECONDS = 0.03
"""The time for which an ack waits for other acks while no consumer needs its prefetch credit.

Each ack of a quorum queue is a write of the broker that is synced, and messages published meanwhile wait for it. So a
lone task's ack would hold up the next one, and a hop of a chain would take longer. A program that dies within that time
has a few more tasks repeated.
"""
SPARE_SHARE = 4
"""The divisor of the prefetch: while at most this share of it is unsettled, acks may wait for other acks."""


class Source:
    """The consumer of a queue, or a fetch from it, which counts the unsettled deliveries that came from there."""

    def __init__(self, queue: str, on_delivery: OnDelivery = lambda _: None) -> None:
        self.queue = queue
        """The name of the queue that the deliveries come from."""
        self.unsettled = 0
        self.delivered = 0
        self._on_delivery = on_delivery

    def deliver(self, delivery: AmqpDelivery) -> None:
        """Pass a delivery to the callback; reject the delivery when the callback raises."""
        self.unsettled += 1
        self.delivered += 1
        try:
            self._on_delivery(delivery)
        except Exception:
            log.exception("A delivery could not be taken; the broker keeps it as a dead letter")
            delivery.reject()


@dataclass(slots=True, eq=False)
class AmqpDelivery:
    """The RabbitMQ implementation of the interface `Delivery`."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    source: Source
    settlements: Settlements
    header: bytes
    """The payload of the message's AMQP content header."""
    body: bytes
    _message: Message | None = None
    _open: bool = True

    @property
    def message(self) -> Message:
        """The delivered message, decoded on the first access."""
        if self._message is None:
            self._message = read_message(self.header, self.body)
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


class ConsumerChannel:
    """A channel that consumes queues and settles their deliveries."""

    def __init__(self, channel: Channel, stream: Stream) -> None:
        self.channel = channel
        """The underlying aiormq channel, which callers use to close the channel and to register callbacks."""
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._consumers: dict[bytes, Source] = {}
        self._contents = ContentAssembler(delivered=self._delivered, closing=self.lose)
        self.settlements = Settlements(self._write_soon)
        """The channel's unsettled deliveries, and the decided settlements that are not written yet."""
        self._spare: int | None = None
        """The number of unsettled deliveries on the channel up to which acks wait for others."""
        self._lingering: asyncio.TimerHandle | None = None
        stream.attach(channel.number, self._contents)

    async def consume(self, consumer: Source, *, tag: str, prefetch: int, exclusive: bool) -> None:
        """Start a consumer, without a time limit; its first delivery may come before this call returns.

        Raises:
            Exception: any of `channels.LOST`, when the channel is lost.
        """
        self._consumers[tag.encode()] = consumer
        self._credit(prefetch)
        await self.channel.basic_qos(prefetch_count=prefetch)
        await self.channel.basic_consume(consumer.queue, _nothing_comes_here, consumer_tag=tag, exclusive=exclusive)

    def _credit(self, prefetch: int) -> None:
        spare = prefetch // SPARE_SHARE
        self._spare = spare if self._spare is None else min(self._spare, spare)

    async def cancel(self, tag: str) -> None:
        """Cancel a consumer at the broker; deliveries that come before the broker's answer still reach the consumer."""
        await self.channel.basic_cancel(tag, timeout=CHANNEL_CALL_SECONDS)
        self.forget(tag)

    def forget(self, tag: str) -> None:
        """Pass no more deliveries to a consumer that the broker has canceled; requeue any that still come."""
        self._consumers.pop(tag.encode(), None)

    def lose(self) -> None:
        """Mark the channel as gone: its deliveries can no longer be settled; idempotent."""
        self._stream.detach(self.channel.number, self._contents)
        self.settlements.lose()
        self._linger_no_longer()

    def _delivered(self, method: bytes, header: bytes, body: bytes) -> None:
        consumer_tag, tag, redelivered, exchange, routing_key = read_deliver(method)
        settlements = self.settlements
        if settlements.lost:
            return
        consumer = self._consumers.get(consumer_tag)
        settlements.add(tag)
        if self._lingering is not None and not self._may_linger():
            self._hurry()
        if consumer is None:  # nobody wants it; a multiple ack must not cover it
            settlements.settle(tag, Settlement.REQUEUE)
            return
        consumer.deliver(AmqpDelivery(tag, redelivered, exchange, routing_key, consumer, settlements, header, body))

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
            self._stream.write([settle_frame(number, settled) for settled in self.settlements.decided()])
        self.settlements.written()


async def _nothing_comes_here(_: DeliveredMessage) -> None:
    """Do nothing: aiormq needs a callback for a consumer, but never calls it, since it does not see the deliveries."""


class Settlements:
    """The unsettled deliveries of one channel, in order, with the decided settlements that are not written yet."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Start without deliveries; `wake` is called when settlements must be written, or the channel is lost.

        Of the settlements since the last writing, it is called for the first, and for the first requeue or reject, for
        which other consumers wait.
        """
        self._wake = wake
        self._outstanding: dict[int, Settlement | None] = {}
        self._decided: list[int] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self.lost = False
        self.pressing = False
        """Whether a decided settlement is a requeue or reject, for which other consumers wait."""

    @property
    def outstanding(self) -> int:
        """The number of deliveries that the broker counts as unsettled."""
        return len(self._outstanding)

    def add(self, tag: int) -> None:
        """Record a delivery that arrived on the channel as unsettled."""
        self._outstanding[tag] = None

    def settle(self, tag: int, verdict: Settlement) -> None:
        """Decide how a delivery is settled; ignored after an earlier decision or on a lost channel."""
        if self.lost or self._outstanding.get(tag, verdict) is not None:
            return
        self._outstanding[tag] = verdict
        self._decided.append(tag)
        presses = verdict is not ACK and not self.pressing
        self.pressing |= presses
        if len(self._decided) == 1 or presses:
            self._idle.clear()
            self._wake()

    def lose(self) -> None:
        """Mark the channel as gone: none of its deliveries can be settled any more; idempotent."""
        if self.lost:
            return
        self.lost = True
        self._outstanding.clear()
        self._decided.clear()
        self._idle.set()
        self._wake()

    async def flushed(self) -> None:
        """Wait until no decided settlement is left to write, or the channel is lost."""
        await self._idle.wait()

    def decided(self) -> list[SettledRange]:
        """Return the decided settlements to write, in order, and forget them; all acks at the head become one range."""
        decided, self._decided, self.pressing = self._decided, [], False
        head = self._acked_head()
        settled = [SettledRange(head, ACK, multiple=True)] if head else []
        for tag in decided:
            verdict = self._outstanding.pop(tag, None)
            if verdict is not None:
                settled.append(SettledRange(tag, verdict))
        return settled

    def written(self) -> None:
        """Mark the settlements that `decided` returned as written."""
        if not self._decided:
            self._idle.set()

    def _acked_head(self) -> int:
        """Remove the acked deliveries before the first unacked one, and return the last removed tag; 0 for none."""
        head: list[int] = []
        for tag, verdict in self._outstanding.items():
            if verdict is not ACK:
                break
            head.append(tag)
        for tag in head:
            del self._outstanding[tag]
        return head[-1] if head else 0
