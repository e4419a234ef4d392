"""A publisher channel that writes AMQP frames itself, and matches each confirm or return to its publish.

aiormq opens the channel and puts it into confirm mode; it must never publish on it, or the sequence numbers diverge.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError

from coditect.broker.port import Promise
from coditect.broker.rabbitmq.channels import give_up
from coditect.broker.rabbitmq.codec import ContentAssembler, publish_frames, read_return
from coditect.broker.rabbitmq.fields import UNSPEAKABLE, read_message
from coditect.broker.rabbitmq.stream import Stream
from coditect.errors import InvalidTask
from coditect.model.message import Message

GATE_SECONDS = 0.5
LARGEST_FRAME = 131_072
"""The largest frame to write where the broker sets no limit, so that other channels are not held up."""


class PublishRefused(Exception):
    """The error of a message that the broker refused, as by a full queue; worth another try."""


class PublishReturned(Exception):
    """The error of a message that the broker returned because no queue is bound to its key."""


class Late(Exception):
    """The error of a publish without an outcome in time; the message may still be delivered."""


@dataclass(slots=True, eq=False)
class Publish:
    """A message to publish, with its exchange, key and time limit; `promise` gets the outcome of its only try."""

    message: Message
    exchange: str
    routing_key: str
    promise: Promise
    """The caller's object, such as a future, on which the outcome of the publish is set."""
    until: float
    """The event loop's time after which the publish fails as `Late`."""
    number: int = field(default=0, kw_only=True)
    """The publish's sequence number on its channel, from 1; 0 before it is written."""
    returned: bool = field(default=False, kw_only=True)
    """Whether the broker returned the message; the confirm of a returned message follows."""

    def succeed(self) -> None:
        """Set the publish's outcome to success: the broker has the message."""
        if not self.promise.done():
            self.promise.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Handle the error of the try: set it as the outcome; after `Late`, the confirm may still come."""
        if not self.promise.done():
            self.promise.set_exception(error)


class PublisherChannel:
    """A channel that publishes messages as `mandatory` and with confirms."""

    def __init__(self, channel: Channel, stream: Stream, *, frame_max: int, sequence: int = 0) -> None:
        self._channel = channel
        self._stream = stream
        self._frame_max = frame_max or LARGEST_FRAME
        self._sequence = sequence
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, Publish] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_expiry = math.inf
        self._contents = ContentAssembler(
            returned=self._returned, confirmed=self._confirmed, closing=self._stop_writing
        )
        self._closing_soon = False
        self.connection: AbstractConnection = channel.connection
        self._closing = channel.closing
        stream.attach(channel.number, self._contents)
        self._closing.add_done_callback(self._lose)

    @property
    def closed(self) -> bool:
        """Tell whether the channel can take no more publishes."""
        return self._closing_soon or self._closing.done() or self._channel.is_closed

    @property
    def ready(self) -> bool:
        """Tell whether a publish can be written at once: the channel is open, without an alarm or a full buffer."""
        return self._stream.open and not self._closing_soon

    @property
    def held_up(self) -> bool:
        """Tell whether the broker has an alarm, or reads the bytes more slowly than they are written."""
        return self._stream.blocked or self._stream.congested

    @property
    def oldest(self) -> Publish | None:
        """The publish that has waited longest for its confirm; None when none waits."""
        return next(iter(self._pending.values()), None)

    async def close(self) -> None:
        """Close the channel, and fail its unconfirmed publishes at once; never raises."""
        self._fail(ChannelInvalidStateError("The channel was closed"))  # the broker's answer may take long
        await give_up(self._channel)

    async def wait_for_room(self) -> bool:
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
        """Publish one message; the returned future ends when the broker has confirmed the message.

        Raises:
            PublishRefused: when the broker did not take the message; worth another try.
            PublishReturned: when no queue takes the message.
            InvalidTask: when AMQP cannot carry a property or header.
            Exception: any of `channels.LOST`, when the connection or channel is lost.
        """
        if self.closed:
            raise ChannelInvalidStateError("The channel is closed")
        confirm = self._loop.create_future()
        self.begin(Publish(message, exchange, routing_key, confirm, math.inf))
        return confirm

    def begin(self, publish: Publish) -> None:
        """Write a publish's frames; its outcome is set by the confirm, the end of its time, or the channel's loss.

        Raises:
            InvalidTask: when AMQP cannot carry a property or header.
        """
        message = publish.message
        try:
            frames = publish_frames(
                self._channel.number, message, publish.exchange, publish.routing_key, frame_max=self._frame_max
            )
        except UNSPEAKABLE as error:
            raise InvalidTask("AMQP cannot carry a property or header", reason=str(error)[:300]) from error
        self._sequence += 1
        publish.number = self._sequence
        self._pending[self._sequence] = publish
        self._stream.write(frames, size=len(message.body))
        if publish.until < self._next_expiry:
            self._expire_at(publish.until)

    # -- what the broker says ---------------------------------------------------------------------------

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        """Set the outcome of the publish number `tag`, or with `multiple` of all publishes up to that number."""
        pending = self._pending
        if not multiple:
            publish = pending.pop(tag, None)
            if publish is not None:
                _end(publish, taken=taken)
            return
        covered = []
        for sequence in pending:
            if sequence > tag:
                break
            covered.append(sequence)
        for sequence in covered:
            _end(pending.pop(sequence), taken=taken)

    def _returned(self, method: bytes, header: bytes, body: bytes) -> None:
        """Mark the publish whose message a `basic.return` brings back as returned, before its confirm arrives.

        It names no number, and a key that had a queue a moment ago may have none now. So of the publishes to this key
        the one with the same message is marked. The broker may have added headers: then body and id decide.
        """
        message = read_message(header, body)
        sent = (*read_return(method), message.message_id)
        for same in (message, body):
            for publish in self._pending.values():
                if (
                    not publish.returned
                    and _address(publish) == sent
                    and same
                    in (
                        publish.message,
                        publish.message.body,
                    )
                ):
                    publish.returned = True
                    return

    # -- loss and lateness ------------------------------------------------------------------------------

    def _expire_at(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(until, self._expire)
        self._next_expiry = until

    def _expire(self) -> None:
        """Fail the publishes that got no confirm in time; keep their numbers, since the confirms may still come."""
        self._timer, self._next_expiry = None, math.inf
        now, next_expiry = self._loop.time(), math.inf
        for publish in tuple(self._pending.values()):
            if publish.until > now:
                next_expiry = min(next_expiry, publish.until)
            elif not publish.promise.done():
                publish.fail(Late())
        if next_expiry < math.inf:
            self._expire_at(next_expiry)

    def _stop_writing(self) -> None:
        """Stop writing on a channel that closes; `_lose` fails the unconfirmed publishes later, with the reason."""
        self._closing_soon = True
        self._stream.detach(self._channel.number, self._contents)

    def _lose(self, closing: asyncio.Future[object]) -> None:
        """Fail all unconfirmed publishes of a lost channel."""
        self._fail(_why(closing))

    def _fail(self, error: BaseException) -> None:
        self._stop_writing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, {}
        for publish in pending.values():
            publish.fail(error)


def _address(publish: Publish) -> tuple[str, str, str | None]:
    return publish.exchange, publish.routing_key, publish.message.message_id or None


def _end(publish: Publish, *, taken: bool) -> None:
    if publish.returned:
        publish.fail(PublishReturned())
    elif taken:
        publish.succeed()
    else:
        publish.fail(PublishRefused())


def _why(closing: asyncio.Future[object]) -> BaseException:
    error = None if closing.cancelled() else closing.exception()
    return error if isinstance(error, Exception) else ChannelInvalidStateError("The channel was closed")
