"""The factory of channels that write and read AMQP frames themselves, and the check that aiormq's version is tested."""

from __future__ import annotations

import logging
from importlib.metadata import version

from aiormq.abc import AbstractConnection

from coditect.broker.rabbitmq.connection.channels import open_channel
from coditect.broker.rabbitmq.frames.consumer_channel import DirectConsumerChannel
from coditect.broker.rabbitmq.frames.publisher_channel import DirectPublisherChannel
from coditect.broker.rabbitmq.frames.question import StreamPath

log = logging.getLogger(__name__)

TESTED = frozenset({"7.2.4"})
"""The versions of aiormq with which the direct wire path was tested."""


def is_tested() -> bool:
    """Tell whether the AMQP frames of Coditect's own were tested with the installed aiormq; log a warning if not."""
    found = version("aiormq")
    if found not in TESTED:
        log.warning(
            "Direct frames are not tested with this aiormq; its own wire path is used",
            extra={"aiormq": found, "tested": ", ".join(sorted(TESTED)), "fix": "install a tested version"},
        )
    return found in TESTED


class DirectPath(StreamPath):
    """The factory (`WirePath`) of channels that write and read AMQP frames themselves, not through aiormq."""

    async def publisher_channel(self, connection: AbstractConnection) -> DirectPublisherChannel:
        """Open a channel on which messages are published with confirms."""
        stream = self.stream
        channel = await open_channel(connection, confirms=True)
        return DirectPublisherChannel(channel, stream, frame_max=connection.connection_tune.frame_max)

    async def consumer_channel(self, connection: AbstractConnection) -> DirectConsumerChannel:
        """Open a channel on which queues are consumed."""
        stream = self.stream
        return DirectConsumerChannel(await open_channel(connection), stream)
