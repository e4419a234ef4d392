"""The opening and closing of aiormq channels, each within a time limit."""

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
"""The number of frames that a busy channel may read ahead; the library's default of 10 stalls the reader."""


async def open_channel(connection: AbstractConnection, *, confirms: bool = False, frames: int = RARE_FRAMES) -> Channel:
    """Open a channel on a connection, with publisher confirms if `confirms`, within a time limit.

    Raises:
        Exception: any of `errors.LOST`, when the connection is lost.
    """
    with heeded():  # else a publish would outlive its deadline
        channel = await connection.channel(
            publisher_confirms=confirms, frame_buffer_size=frames, timeout=CALL_SECONDS, on_return_raises=True
        )
    if not isinstance(channel, Channel):
        raise RuntimeError("aiormq gave a channel of an unknown kind")
    return channel


async def close_quietly(channel: Channel) -> None:
    """Close a channel, within 10 s, unless it is closed already; a failure is raised."""
    if not channel.is_closed:
        await channel.close(timeout=CALL_SECONDS)


async def give_up(channel: Channel) -> None:
    """Close a channel and only log a failure; pending calls on the channel end."""
    try:
        await close_quietly(channel)
    except asyncio.CancelledError:
        if canceled_by_us():
            raise
    except LOST as error:
        log.debug("Closing a channel failed", extra={"reason": repr(error)})


def is_blocked(connection: AbstractConnection) -> bool:
    """Tell whether the broker has an alarm and stops publishes on the connection.

    Taking the first step of a wait answers that without a timer.
    """
    wait = connection.ready()
    try:
        wait.send(None)
    except StopIteration:
        return False
    wait.close()
    return True
