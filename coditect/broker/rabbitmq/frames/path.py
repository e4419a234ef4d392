"""The factory of channels with direct frames: one for each `RabbitConnection`, which has one connection at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from importlib.metadata import version

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from coditect.broker.rabbitmq.connection.channels import open_channel
from coditect.broker.rabbitmq.frames.consumer_channel import DirectConsumerChannel
from coditect.broker.rabbitmq.frames.publisher_channel import DirectPublisherChannel
from coditect.broker.rabbitmq.frames.question import Question
from coditect.broker.rabbitmq.frames.stream import Stream
from coditect.broker.rabbitmq.path import Feed

log = logging.getLogger(__name__)

TESTED = frozenset({"7.2.4"})
"""The versions of aiormq under which frames may be taken out of its stream: the whole suite ran on them."""


def is_tested() -> bool:
    """Return whether direct frames were tested with the installed aiormq; log a warning if not."""
    found = version("aiormq")
    if found not in TESTED:
        log.warning(
            "Direct frames are not tested with this aiormq; its own wire path is used",
            extra={"aiormq": found, "tested": ", ".join(sorted(TESTED)), "fix": "install a tested version"},
        )
    return found in TESTED


class DirectPath:
    """The `WirePath` whose channels write and read the hot frames themselves."""

    def __init__(self) -> None:
        self._stream: Stream | None = None

    def tap(self, writer: asyncio.StreamWriter) -> Feed:
        """Route a new connection's bytes through a `Stream`."""
        self._stream = Stream(writer, asyncio.get_running_loop())
        return self._stream.feed

    async def publisher_channel(self, connection: AbstractConnection) -> DirectPublisherChannel:
        """Open a channel to publish on."""
        stream = self._of_this_connection()
        channel = await open_channel(connection, confirms=True)
        return DirectPublisherChannel(channel, stream, frame_max=connection.connection_tune.frame_max)

    async def consumer_channel(self, connection: AbstractConnection) -> DirectConsumerChannel:
        """Open a channel to consume on."""
        stream = self._of_this_connection()
        return DirectConsumerChannel(await open_channel(connection), stream)

    def question(self, channel: Channel) -> Callable[[], asyncio.Future[bool]]:
        """Return a function that asks the broker something over a channel that is used for nothing else."""
        return Question(channel, self._of_this_connection()).ask

    def _of_this_connection(self) -> Stream:
        if self._stream is None:
            raise RuntimeError("There is no connection yet")
        return self._stream
