"""A publisher channel that writes AMQP frames itself, and matches each confirm or return to its publish.

aiormq opens the channel and puts it into confirm mode; it must never publish on it, or the sequence numbers diverge.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError

from coditect.broker.rabbitmq.connection.channels import give_up
from coditect.broker.rabbitmq.frames.codec import ContentAssembler, publish_frames, read_return
from coditect.broker.rabbitmq.frames.fields import read_message
from coditect.broker.rabbitmq.frames.stream import Stream
from coditect.broker.rabbitmq.path import Late, Publish, PublishRefused, PublishReturned, Unconfirmed
from coditect.broker.rabbitmq.properties import UNSPEAKABLE
from coditect.errors import InvalidTask
from coditect.model.message import Message

GATE_SECONDS = 0.5
LARGEST_FRAME = 131_072
"""The largest frame to write where the broker sets no limit, so that other channels are not held up."""


@dataclass(slots=True, eq=False)
class Once:
    """A publish that is sent only once, without retries; its future gets the confirm or the error."""

    message: Message
    exchange: str
    routing_key: str
    promise: asyncio.Future[None]
    until: float = math.inf
    returned: bool = False

    def taken(self) -> None:
        """Set the publish's outcome to success: the broker has the message."""
        if not self.promise.done():
            self.promise.set_result(None)

    def failed(self, error: BaseException) -> None:
        """Set the publish's outcome to the given error."""
        if not self.promise.done():
            self.promise.set_exception(error)


class DirectPublisherChannel:
    """A `PublisherChannel` that writes publishes as frames and matches the confirms itself."""

    def __init__(self, channel: Channel, stream: Stream, *, frame_max: int, sequence: int = 0) -> None:
        self._channel = channel
        self._stream = stream
        self._frame_max = frame_max or LARGEST_FRAME
        self._sequence = sequence
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, Publish] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_look = math.inf
        self._contents = ContentAssembler(returned=self._came_back, confirmed=self._confirmed, closing=self._go)
        self._going = False
        self.connection: AbstractConnection = channel.connection
        self._closing = channel.closing
        stream.attach(channel.number, self._contents)
        self._closing.add_done_callback(self._lose)

    @property
    def closed(self) -> bool:
        """Tell whether the channel can take no more publishes."""
        return self._going or self._closing.done() or self._channel.is_closed

    @property
    def ready(self) -> bool:
        """Tell whether a publish can be written at once: the channel is open, without an alarm or a full buffer."""
        return self._stream.open and not self._going

    @property
    def held_up(self) -> bool:
        """Tell whether the broker has an alarm, or reads the bytes more slowly than they are written."""
        return self._stream.blocked or self._stream.congested

    @property
    def oldest(self) -> Unconfirmed | None:
        """The publish that has waited longest for its confirm; None when none waits."""
        for number, one in self._pending.items():
            return Unconfirmed(number, one.exchange, one.routing_key)
        return None

    async def close(self) -> None:
        """Close the channel, and fail its unconfirmed publishes at once; never raises."""
        self._fail(ChannelInvalidStateError("The channel was closed"))  # the broker's answer may take long
        await give_up(self._channel)

    async def gate(self) -> bool:
        """Wait, at most 0.5 s, while the broker has an alarm or reads slowly; return whether publishing may go on."""
        try:
            async with asyncio.timeout(GATE_SECONDS):
                await self._stream.unblocked()
                while self._stream.congested:
                    await self._stream.drained()
        except TimeoutError:
            return False
        return True

    def send(self, message: Message, *, exchange: str, routing_key: str) -> asyncio.Future[None]:
        """Publish a message, and return the future of its confirm or error."""
        if self.closed:
            raise ChannelInvalidStateError("The channel is closed")
        publish = Once(message, exchange, routing_key, self._loop.create_future())
        self.begin(publish)
        return publish.promise

    def begin(self, publish: Publish) -> None:
        """Write a publish's frames; its outcome is set by the confirm, the end of its time, or the channel's loss."""
        message = publish.message
        try:
            frames = publish_frames(
                self._channel.number, message, publish.exchange, publish.routing_key, frame_max=self._frame_max
            )
        except UNSPEAKABLE as error:
            raise InvalidTask("AMQP cannot carry a property or header", reason=str(error)[:300]) from error
        self._sequence += 1
        self._pending[self._sequence] = publish
        self._stream.write(frames, size=len(message.body))
        if publish.until < self._next_look:
            self._look_again_at(publish.until)

    # -- what the broker says ---------------------------------------------------------------------------

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        """Set the outcome of the publish number `tag`, or with `multiple` of all publishes up to that number."""
        pending = self._pending
        if not multiple:
            one = pending.pop(tag, None)
            if one is not None:
                _end(one, has_it=taken)
            return
        covered = []
        for sequence in pending:
            if sequence > tag:
                break
            covered.append(sequence)
        for sequence in covered:
            _end(pending.pop(sequence), has_it=taken)

    def _came_back(self, method: bytes, header: bytes, body: bytes) -> None:
        """Mark the publish whose message a `basic.return` brings back as returned, before its confirm arrives.

        It names no number, and a key that had a queue a moment ago may have none now. So of the publishes to this key
        the one with the same message is marked. The broker may have added headers: then body and id decide.
        """
        returned, message = read_return(method), read_message(header, body)
        sent = (returned.exchange, returned.routing_key, message.message_id)
        for same in (message, body):
            for one in self._pending.values():
                if not one.returned and _address(one) == sent and same in (one.message, one.message.body):
                    one.returned = True
                    return

    # -- loss and lateness ------------------------------------------------------------------------------

    def _look_again_at(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(until, self._expire)
        self._next_look = until

    def _expire(self) -> None:
        """Fail the publishes that got no confirm in time; keep their numbers, since the confirms may still come."""
        self._timer, self._next_look = None, math.inf
        now, next_look = self._loop.time(), math.inf
        for one in tuple(self._pending.values()):
            if one.until > now:
                next_look = min(next_look, one.until)
            elif not one.promise.done():
                one.failed(Late())
        if next_look < math.inf:
            self._look_again_at(next_look)

    def _go(self) -> None:
        """Stop writing on a channel that closes; `_lose` fails the unconfirmed publishes later, with the reason."""
        self._going = True
        self._stream.detach(self._channel.number, self._contents)

    def _lose(self, closing: asyncio.Future[object]) -> None:
        """Fail all unconfirmed publishes of a lost channel."""
        self._fail(_why(closing))

    def _fail(self, error: BaseException) -> None:
        self._go()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, {}
        for one in pending.values():
            one.failed(error)


def _address(one: Publish) -> tuple[str, str, str | None]:
    return one.exchange, one.routing_key, one.message.message_id or None


def _end(one: Publish, *, has_it: bool) -> None:
    if one.returned:
        one.failed(PublishReturned())
    elif has_it:
        one.taken()
    else:
        one.failed(PublishRefused())


def _why(closing: asyncio.Future[object]) -> BaseException:
    error = None if closing.cancelled() else closing.exception()
    return error if isinstance(error, Exception) else ChannelInvalidStateError("The channel was closed")
