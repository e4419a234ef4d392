"""A question to the broker that costs an idle process next to nothing: `channel.flow`, over a channel of its own."""

from __future__ import annotations

import asyncio

from aiormq.channel import Channel

from coditect.broker.rabbitmq.frames.codec import FLOW_OK, METHOD, flow_frame
from coditect.broker.rabbitmq.frames.stream import Stream


class Question:
    """A question without effect that is asked again and again, at most one at a time."""

    def __init__(self, channel: Channel, stream: Stream) -> None:
        self._stream = stream
        self._number = channel.number
        self._answer: asyncio.Future[bool] | None = None
        stream.attach(channel.number, self)
        channel.closing.add_done_callback(self._lose)

    def ask(self) -> asyncio.Future[bool]:
        """Ask the broker, and return a future that is done when the broker has answered."""
        if self._answer is None or self._answer.done():
            self._answer = asyncio.get_running_loop().create_future()
            self._stream.write([flow_frame(self._number)])
        return self._answer

    def take(self, kind: int, payload: bytes) -> bool:
        """Take the broker's answer, and pass on what is said of the channel."""
        if kind != METHOD or not payload.startswith(FLOW_OK):
            return False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(True)
        return True

    def take_message(self, data: bytes, at: int, header_at: int, channel: int) -> int:
        """Return 0: nothing is delivered on the channel."""
        return 0

    def _lose(self, _: object) -> None:
        """End an open question together with its channel."""
        self._stream.detach(self._number, self)
        if self._answer is not None:
            self._answer.cancel()
