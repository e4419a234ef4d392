"""Opens and closes channels, typed as the library's own class."""

from __future__ import annotations

import asyncio
import logging

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from coditect.aio.cancellation import heeded
from coditect.broker.rabbitmq.errors import LOST, canceled_by_us

log = logging.getLogger(__name__)

CALL_SECONDS = 10.0
RARE_FRAMES = 10
HOT_FRAMES = 4096
"""Frames a busy channel may have read ahead; the library's default of 10 stalls the reader."""


async def open_channel(connection: AbstractConnection, *, confirms: bool = False, frames: int = RARE_FRAMES) -> Channel:
    """A fresh channel. Raises what the library raises when the connection is lost."""
    with heeded():  # else a publish would outlive its deadline
        channel = await connection.channel(
            publisher_confirms=confirms, frame_buffer_size=frames, timeout=CALL_SECONDS, on_return_raises=True
        )
    if not isinstance(channel, Channel):
        raise RuntimeError("aiormq gave a channel of an unknown kind")
    return channel


async def close_quietly(channel: Channel) -> None:
    """Closes a channel that may be closed already."""
    if not channel.is_closed:
        await channel.close(timeout=CALL_SECONDS)


async def give_up(channel: Channel) -> None:
    """Closes it, whatever comes of that, and so ends what is under way on it."""
    try:
        await close_quietly(channel)
    except asyncio.CancelledError:
        if canceled_by_us():
            raise
    except LOST as error:
        log.debug("Closing a channel failed", extra={"reason": repr(error)})


def is_blocked(connection: AbstractConnection) -> bool:
    """Whether the broker has told us to stop publishing. Taking a wait's first step asks that without a timer."""
    wait = connection.ready()
    try:
        wait.send(None)
    except StopIteration:
        return False
    wait.close()
    return True
