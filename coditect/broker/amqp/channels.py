"""Opens and closes channels, typed as the library's own class."""

from __future__ import annotations

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from coditect.cancellation import heeded

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
