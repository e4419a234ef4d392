"""The plain wire path: publishing, consuming and acknowledging by aiormq's own methods."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import NoReturn

from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError, DeliveryError, PublishError

from coditect.aio.supervisor import Supervisor
from coditect.broker.rabbitmq.connection.channels import CALL_SECONDS, HOT_FRAMES, give_up, is_blocked, open_channel
from coditect.broker.rabbitmq.delivery import AmqpDelivery, Source
from coditect.broker.rabbitmq.errors import LOST, canceled_by_us
from coditect.broker.rabbitmq.frames.fields import read_message
from coditect.broker.rabbitmq.frames.question import StreamPath
from coditect.broker.rabbitmq.frames.readable import packed
from coditect.broker.rabbitmq.path import Publish, PublishRefused, PublishReturned, Receiver, Unconfirmed
from coditect.broker.rabbitmq.properties import UNSPEAKABLE, to_properties
from coditect.broker.rabbitmq.settlements import Settlement, Settlements
from coditect.errors import InvalidTask
from coditect.model.message import Message

GATE_SECONDS = 0.5


class PlainPath(StreamPath):
    """The factory (`WirePath`) of channels that publish and consume by aiormq's own methods."""

    async def publisher_channel(self, connection: AbstractConnection) -> PlainPublisherChannel:
        """Open a channel on which messages are published with confirms."""
        return PlainPublisherChannel(await open_channel(connection, confirms=True, frames=HOT_FRAMES))

    async def consumer_channel(self, connection: AbstractConnection) -> PlainConsumerChannel:
        """Open a channel on which queues are consumed."""
        return PlainConsumerChannel(await open_channel(connection, frames=HOT_FRAMES))


class PlainPublisherChannel:
    """A `PublisherChannel` that publishes by aiormq's `basic_publish`."""

    ready = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = count(1)
        self._pending: dict[int, tuple[str, str]] = {}
        self._ended = asyncio.get_running_loop().create_future()
        self.connection = channel.connection

    @property
    def held_up(self) -> bool:
        """Tell whether the broker has an alarm and stops publishes."""
        return is_blocked(self.connection)

    @property
    def oldest(self) -> Unconfirmed | None:
        """The publish that has waited longest for its confirm; None when none waits."""
        for number, goes_to in self._pending.items():
            return Unconfirmed(number, *goes_to)
        return None

    async def close(self) -> None:
        """Close the channel, and fail its unconfirmed publishes; never raises."""
        if not self._ended.done():
            self._ended.set_result(None)
        await give_up(self._channel)

    @property
    def closed(self) -> bool:
        """Tell whether the channel can take no more publishes."""
        return self._ended.done() or self._channel.is_closed

    async def gate(self) -> bool:
        """Wait, at most 0.5 s, until the broker has no alarm; return whether publishing may go on."""
        if not is_blocked(self.connection):
            return True
        try:
            async with asyncio.timeout(GATE_SECONDS):
                await self.connection.ready()
        except TimeoutError:
            return False
        return True

    async def send(self, message: Message, *, exchange: str, routing_key: str) -> None:
        """Publish a message, and return when the broker has confirmed it."""
        number = next(self._numbers)
        self._pending[number] = (exchange, routing_key)
        confirm = asyncio.ensure_future(
            self._channel.basic_publish(
                message.body,
                exchange=exchange,
                routing_key=routing_key,
                properties=to_properties(message),
                mandatory=True,
                wait=False,
            )
        )
        try:
            await asyncio.wait({confirm, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not confirm.done():  # aiormq would wait until the broker answers the close
                raise ChannelInvalidStateError("The channel was closed")
            await confirm
        except PublishError as error:
            raise PublishReturned from error
        except DeliveryError as error:
            raise PublishRefused from error
        except UNSPEAKABLE as error:
            raise InvalidTask("AMQP cannot carry a property or header", reason=str(error)[:300]) from error
        finally:
            confirm.cancel()
            del self._pending[number]

    def begin(self, publish: Publish) -> NoReturn:
        """Raise NotImplementedError, since the channel is never `ready`."""
        raise NotImplementedError


class PlainConsumerChannel:
    """A `ConsumerChannel` that consumes by aiormq's `basic_consume`."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._wake = asyncio.Event()
        self.settlements = Settlements(self._wake.set)

    def start(self, background: Supervisor) -> None:
        """Start writing decided settlements, once per turn of the event loop."""
        background.keep(self._settle, name="settle", critical=True, until=lambda: self.settlements.lost)

    async def consume(self, receiver: Receiver, *, tag: str, prefetch: int, exclusive: bool) -> None:
        """Start a consumer, whose deliveries aiormq decodes."""

        def deliver(delivered: DeliveredMessage) -> None:
            if self.settlements.lost:
                return  # it waited in the loop while the channel went
            delivery = plain_delivery(delivered, receiver, self.settlements)
            receiver.deliver(delivery)

        await self.channel.basic_qos(prefetch_count=prefetch, timeout=CALL_SECONDS)
        await self.channel.basic_consume(
            receiver.queue,
            deliver,  # type: ignore[arg-type] # aiormq takes plain functions, too
            consumer_tag=tag,
            exclusive=exclusive,
            timeout=CALL_SECONDS,
        )

    async def cancel(self, tag: str) -> None:
        """Cancel a consumer at the broker; deliveries that are under way still arrive."""
        await self.channel.basic_cancel(tag, timeout=CALL_SECONDS)

    def forget(self, tag: str) -> None:
        """Do nothing, since aiormq has dropped the consumer itself."""

    def lose(self) -> None:
        """Mark the channel as gone: its deliveries can no longer be settled; idempotent."""
        self.settlements.lose()

    async def _settle(self) -> None:
        while not self.settlements.lost and not canceled_by_us():
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)  # lets the deliveries that finish in this turn join
            try:
                await self._write()
            except asyncio.CancelledError:
                if canceled_by_us():
                    raise
                self.lose()
            except LOST:
                self.lose()
            self.settlements.written()

    async def _write(self) -> None:
        for settled in self.settlements.decided():
            if settled.verdict is Settlement.ACK:
                await self.channel.basic_ack(settled.tag, multiple=settled.multiple, wait=False)
            else:
                await self.channel.basic_nack(settled.tag, requeue=settled.verdict is Settlement.REQUEUE, wait=False)


def plain_delivery(delivered: DeliveredMessage, source: Source, settlements: Settlements) -> AmqpDelivery:
    """Convert a delivery of aiormq into an `AmqpDelivery`, whose ack, requeue or reject goes through `settlements`."""
    tag = delivered.delivery_tag or 0
    settlements.took(tag)
    return AmqpDelivery(
        tag,
        bool(delivered.redelivered),
        delivered.exchange or "",
        delivered.routing_key or "",
        source,
        settlements,
        read_message,
        packed(delivered.header),
        delivered.body,
    )
