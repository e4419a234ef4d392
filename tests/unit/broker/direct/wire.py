"""A connection without a broker: what is said to it is written down, what the broker says is given by the test."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from aiormq.channel import Channel
from pamqp import frame
from pamqp.base import Frame
from pamqp.commands import Basic

from coditect.broker.rabbitmq.consumer_channel import AmqpDelivery, ConsumerChannel, Source
from coditect.broker.rabbitmq.publisher_channel import Publish, PublisherChannel
from coditect.broker.rabbitmq.stream import Stream
from coditect.model.message import Message
from tests.unit.broker.direct.written import content


class WireTransport(asyncio.WriteTransport):
    """Takes everything, or nothing; `held` are bytes that it could not send yet."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.closing = False
        self.sent = b""
        self.flowing = asyncio.Event()
        self.flowing.set()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    async def drain(self) -> None:
        await self.flowing.wait()

    def get_write_buffer_size(self) -> int:
        return self.held

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


@dataclass
class WireChannel:
    """As much of aiormq's channel as is asked for."""

    number: int
    closing: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    connection: object = None
    is_closed: bool = False


class Wire:
    """One connection."""

    def __init__(self) -> None:
        self.transport = WireTransport()
        self.stream = Stream(self.transport, self.transport.drain, asyncio.get_running_loop())
        self.channels: dict[int, WireChannel] = {}

    def channel(self, number: int) -> Channel:
        self.channels[number] = WireChannel(number)
        return cast(Channel, self.channels[number])

    def publisher_channel(self, number: int = 1, *, sequence: int = 0) -> PublisherChannel:
        return PublisherChannel(self.channel(number), self.stream, frame_max=4_096, sequence=sequence)

    def consumer_channel(self, number: int = 1) -> ConsumerChannel:
        return ConsumerChannel(self.channel(number), self.stream)

    def consuming(self, number: int = 1) -> tuple[ConsumerChannel, Held]:
        """A channel with a consumer `c`, and what it gets."""
        channel, held = self.consumer_channel(number), Held()
        channel._consumers[b"c"] = held
        return channel, held

    def say(self, *said: bytes) -> bytes:
        """The broker sends; returns what aiormq sees of it."""
        return self.stream.feed(b"".join(said))

    def deliver(self, tag: int, consumer: str, body: bytes = b"", *, key: str = "q", number: int = 1) -> bytes:
        written = content(number, Basic.Deliver(consumer, 0, False, "", key), Basic.Properties(), body)
        at = 7 + 4 + 1 + len(consumer)
        method = written[0][:at] + tag.to_bytes(8, "big") + written[0][at + 8 :]  # pamqp knows no tag beyond 2^63
        return self.say(method, *written[1:])

    async def sent(self) -> list[Frame]:
        """What was written since the last look; gives what is gathered the time to leave."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = []
        data, self.transport.sent = self.transport.sent, b""
        while data:
            consumed, _, one = frame.unmarshal(data)
            found.append(cast(Frame, one))
            data = data[consumed:]
        return found


class Held(Source):
    """A consumer that keeps what it gets, or does with it what it is told to."""

    def __init__(self, do: Callable[[AmqpDelivery], Any] = lambda _: None) -> None:
        super().__init__("queue")
        self.deliveries: list[AmqpDelivery] = []
        self._do = do

    def deliver(self, delivery: AmqpDelivery) -> None:
        self.unsettled += 1
        self.deliveries.append(delivery)
        self._do(delivery)


def ack(tag: int, *, multiple: bool = False, number: int = 1, taken: bool = True) -> bytes:
    """A confirm, with any tag."""
    payload = b"\x00\x3c" + (b"\x00\x50" if taken else b"\x00\x78") + tag.to_bytes(8, "big") + bytes([multiple])
    return b"\x01" + number.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + b"\xce"


def returned(key: str, message_id: str | None, *, exchange: str = "", body: bytes = b"x", **more: Any) -> bytes:
    method = Basic.Return(312, "NO_ROUTE", exchange, key)
    return b"".join(content(1, method, Basic.Properties(message_id=message_id, **more), body))


def publish(
    publisher_channel: PublisherChannel,
    key: str = "q",
    name: str | None = None,
    body: bytes = b"x",
    **more: Any,
) -> asyncio.Future[None]:
    """One publish; it ends with None, or with the path's error."""
    confirm = asyncio.get_running_loop().create_future()
    publisher_channel.begin(Publish(Message(body, message_id=name, **more), "", key, confirm, math.inf))
    return confirm


def ended(futures: list[asyncio.Future[None]]) -> list[object]:
    """Of each publish: None, the kind of its error, or that it waits."""
    return ["waits" if not one.done() else type(one.exception()) if one.exception() else None for one in futures]
