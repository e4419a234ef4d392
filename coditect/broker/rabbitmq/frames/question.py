"""A cheap question to the broker, by which a silent connection is tested: `channel.flow` on its own channel."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from coditect.broker.rabbitmq.connection.channels import open_channel
from coditect.broker.rabbitmq.errors import LOST
from coditect.broker.rabbitmq.frames.codec import CLOSING, FLOW_OK, METHOD, flow_frame
from coditect.broker.rabbitmq.frames.stream import Stream
from coditect.broker.rabbitmq.path import Feed

log = logging.getLogger(__name__)


class ChannelQuestion:
    """The test (`Question`) whether the broker answers, by a `channel.flow` frame on a channel of its own."""

    def __init__(self, connection: AbstractConnection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._channel: Channel | None = None
        self._answer: asyncio.Future[bool] | None = None

    async def open(self) -> None:
        """Open the channel that asks whether the broker answers; raise one of `errors.LOST` on a lost connection."""
        self._channel = channel = await open_channel(self._connection)
        self._stream.attach(channel.number, self)
        channel.closing.add_done_callback(partial(self._lose, channel))

    def ask(self) -> asyncio.Future[bool]:
        """Ask whether the broker answers, and return the future of the answer; replace a lost channel by a new one."""
        if self._answer is None or self._answer.done():
            loop = asyncio.get_running_loop()
            if self._channel is not None and self._channel.is_closed:
                self._lose(self._channel)
            if self._channel is None:
                self._answer = loop.create_task(self._opened(), name="ask the broker")
            else:
                self._answer = loop.create_future()
                self._stream.write([flow_frame(self._channel.number)])
        return self._answer

    async def _opened(self) -> bool:
        try:
            await self.open()
        except LOST as error:
            log.debug("A silent connection does not answer", extra={"reason": repr(error)})
            return False
        return True

    def take(self, kind: int, payload: bytes) -> bool:
        """Consume the answer, `channel.flow-ok`; pass other frames on, and cancel the question at `channel.close`."""
        if kind == METHOD and self._channel is not None and payload.startswith(CLOSING):
            self._lose(self._channel)
        if kind != METHOD or not payload.startswith(FLOW_OK):
            return False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(True)
        return True

    def take_message(self, data: bytes, at: int, header_at: int, channel: int) -> int:
        """Return 0, since no delivery comes on the channel."""
        return 0

    def _lose(self, channel: Channel, _: object = None) -> None:
        """Cancel the wait for the broker's answer when its channel is lost; ignore a channel replaced already."""
        if self._channel is not channel:
            return
        self._channel = None
        self._stream.detach(channel.number, self)
        if self._answer is not None:
            self._answer.cancel()


class StreamPath:
    """The base of `PlainPath` and `DirectPath`: it holds a connection's byte stream, and opens a channel to test it."""

    def __init__(self) -> None:
        self._stream: Stream | None = None

    def install(self, writer: asyncio.StreamWriter) -> Feed:
        """Route a new connection's bytes through a `Stream`, and return the function for incoming bytes."""
        self._stream = Stream(writer, asyncio.get_running_loop())
        return self._stream.feed

    @property
    def stream(self) -> Stream:
        """The `Stream` of the present connection."""
        if self._stream is None:
            raise RuntimeError("There is no connection yet")
        return self._stream

    async def question(self, connection: AbstractConnection) -> ChannelQuestion:
        """Open a channel that only asks whether the broker answers."""
        question = ChannelQuestion(connection, self.stream)
        await question.open()
        return question
