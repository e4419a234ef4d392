"""A client over an aio-pika connection that a program has already: `Client(broker)` with the broker of `broker_over`.

The program keeps its connection, and opens, restores and closes it. The broker opens channels of its own on it, whose
frames it takes from and puts into the queues of aiormq, the library below aio-pika. After a loss it waits until the
program, or aio-pika's robust layer, has connected again, and restores queues and consumers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractConnection as AmqpConnection
from aiormq.abc import ChannelFrame, FrameType
from aiormq.channel import Channel
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq.channels import CONNECTION_PARTS, check_library, give_up, is_blocked
from coditect.broker.rabbitmq.codec import CHANNEL_CLOSE, METHOD, FrameSink
from coditect.broker.rabbitmq.connection import RabbitConnection, Restore, end_calls_typed
from coditect.broker.rabbitmq.fields import UNSPEAKABLE, marked
from coditect.broker.rabbitmq.stream import Stream
from coditect.errors import SetupError

RECONNECT_CHECK_SECONDS = 0.05
"""The time between two checks whether a lost connection is back."""


def broker_over(connection: AbstractConnection, *, declare: bool = True, quorum: bool = False) -> AmqpBroker:
    """Return a broker that shares an aio-pika connection, robust or not; `async with` opens it.

    Example:
        async with await aio_pika.connect_robust(url) as connection:
            async with broker_over(connection) as broker, Client(broker) as client:
                print(await client.request("echo.say", {"text": "hello"}))

    Args:
        connection: The program's connection, which stays open when the broker is closed.
        declare: Whether shared exchanges and queues are declared; if not, they must exist.
        quorum: Whether all queues are quorum queues, as in a cluster whose agents set `CODITECT_REPLY_QUEUE=quorum`.

    Raises:
        SetupError: by `async with`, when the program has closed the connection.
        BrokerUnavailable: by `async with`, when the connection is not back within 10 s; retryable.
    """

    connect = partial(_BorrowedConnection, connection)
    return AmqpBroker(str(connection), declare=declare, quorum=quorum, connect=connect)


class _BorrowedConnection(RabbitConnection):
    """A connection that aio-pika opens, restores and closes; only its channels are Coditect's."""

    def __init__(self, theirs: AbstractConnection, name: str, restore: Restore) -> None:
        url = str(theirs).partition("?")[0].replace(",", "%2C")  # it is one host, and its virtual host may have commas
        super().__init__(url, name=name, restore=restore)
        self._theirs = theirs
        self._borrowed: _BorrowedStream | None = None

    async def _connect(self, limit: asyncio.Timeout) -> AmqpConnection:
        """Wait until the program's connection is open, and return what aio-pika has below it."""
        while (transport := self._theirs.transport) is None or transport.connection.is_closed:
            if self._theirs.is_closed:
                fix = "keep the aio-pika connection open for as long as the broker over it"
                raise SetupError("The program has closed its connection", fix=fix)
            await asyncio.sleep(RECONNECT_CHECK_SECONDS)
        await self._theirs.connected.wait()
        connection = self._connection = transport.connection
        end_calls_typed(connection)
        check_library(connection, CONNECTION_PARTS)
        self._check_version()
        self._stream = self._borrowed = _BorrowedStream(connection)
        self._probe = await self._new_probe(connection)
        return connection

    async def _disconnect(self) -> None:
        """Close the channels of ours, and nothing else."""
        if self._borrowed is not None:
            await self._borrowed.close()

    async def _until_lost(self, connection: AmqpConnection) -> None:
        """Wait until the connection is lost; aio-pika's heartbeats find out when nothing comes any more."""
        await asyncio.wait({connection.closing})


class _BorrowedStream(Stream):
    """The stream of our channels on a connection that aiormq reads and writes: it uses the library's own queues."""

    def __init__(self, connection: AmqpConnection) -> None:
        transport = _QueueTransport(connection)
        super().__init__(transport, transport.drain, asyncio.get_running_loop())
        self._connection = connection

    def attach(self, number: int, channel: FrameSink) -> None:
        """Offer the frames of a channel number, which aiormq has decoded, to the given receiver from now on."""
        super().attach(number, channel)
        theirs = self._connection.channels.get(number)
        if not isinstance(theirs, Channel):
            return  # it is lost already

        def take(frame: FrameType) -> bool:
            if self._channels.get(number) is not channel:
                return False
            raw = _encoded(frame, number)
            return channel.take(raw[0], raw[7:-1])

        theirs.frames = _OfferedFrames(theirs.frames, take)

    @property
    def blocked(self) -> bool:
        """Tell whether the broker has an alarm and stops publishes."""
        return is_blocked(self._connection)

    async def unblocked(self) -> None:
        """Wait until the broker's alarm has ended."""
        await self._connection.ready()

    async def close(self) -> None:
        """Close the channels that are open, on which nothing is written any more; never raises."""
        open_now = [(self._connection.channels.get(number), taken) for number, taken in self._channels.items()]
        for _, taken in open_now:
            taken.take(METHOD, CHANNEL_CLOSE)
        await asyncio.gather(*(give_up(channel) for channel, _ in open_now if isinstance(channel, Channel)))


class _OfferedFrames(asyncio.Queue[tuple[int, FrameType]]):
    """A queue in front of the one from which aiormq's channel reads its frames: it passes on what `take` leaves."""

    def __init__(self, frames: asyncio.Queue[tuple[int, FrameType]], take: Callable[[FrameType], bool]) -> None:
        super().__init__()
        self._frames = frames
        self._take = take

    async def put(self, item: tuple[int, FrameType]) -> None:
        """Pass a frame with its weight on to the channel, unless `take` consumes the frame."""
        if not self._take(item[1]):
            await self._frames.put(item)

    async def get(self) -> tuple[int, FrameType]:
        """Return the next frame for the channel, with its weight."""
        return await self._frames.get()

    def task_done(self) -> None:
        """Note that the channel has handled a frame."""
        self._frames.task_done()


class _QueueTransport(asyncio.WriteTransport):
    """The writing end of a `_BorrowedStream`: bytes leave by aiormq's queue, in order with the library's own frames."""

    def __init__(self, connection: AmqpConnection) -> None:
        super().__init__()
        self._connection = connection
        self._unsent: dict[asyncio.Future[None], int] = {}
        """The bytes of each piece that aiormq has not written yet."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Put bytes into the queue, full or not: what waited for room might be overtaken by its channel's end."""
        sent = self._connection.create_future()
        self._unsent[sent] = len(data)
        sent.add_done_callback(self._unsent.pop)
        queue = self._connection.write_queue
        queue.full = lambda: False  # type: ignore[method-assign]
        try:
            queue.put_nowait(ChannelFrame(bytes(data), should_close=False, drain_future=sent))
        finally:
            del queue.full

    async def drain(self) -> None:
        """Wait until all bytes are written, or the connection is lost."""
        if self._unsent:
            await asyncio.wait(self._unsent)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that aiormq has not written yet."""
        return sum(self._unsent.values())

    def is_closing(self) -> bool:
        """Tell whether the connection is lost."""
        return self._connection.is_closed


def _encoded(frame: FrameType, number: int) -> bytes:
    """Return a decoded frame as bytes again; a header that cannot be encoded is marked as undecodable."""
    try:
        return marshal(frame, number)
    except UNSPEAKABLE as error:
        if not isinstance(frame, ContentHeader):
            raise
        properties = Basic.Properties(headers=dict(marked(f"the headers: {error}")))
        return marshal(ContentHeader(body_size=frame.body_size, properties=properties), number)
