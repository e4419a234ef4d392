"""A stream of live events to one reader: an event filter, and the number of the last message that it has looked at.

A slow stream holds nothing but its position, so it costs the others nothing. When the window has moved past the
position, the stream ends and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from coditect.api.live.window import END, GAP, READ_AGAIN, LiveFrame, LiveWindow, notice
from coditect.messaging.event_filter import EventFilter

PING_SECONDS = 15.0
MOST_AT_ONCE = 500
PING = "ping"
"""The name of a frame that only says how far the stream has come."""
TOO_SLOW = "the reader was too slow: events that it had not read are no longer kept"


class LiveStream:
    """The stream of live events and notices to one reader, after the last message that it has, or from now on."""

    def __init__(
        self, window: LiveWindow, selection: EventFilter, last_id: str = "", *, ping_seconds: float = PING_SECONDS
    ) -> None:
        self._window = window
        self._selection = selection
        self._ping_seconds = ping_seconds
        self._position, self._missing = window.resume(last_id)
        self._news = asyncio.Event()
        self._reason = ""

    def wake(self) -> None:
        """Tell the stream that there may be new messages for its reader."""
        self._news.set()

    def end(self, reason: str) -> None:
        """End the stream: its reader still gets the messages that are kept for it, and last the reason of the end."""
        self._reason = self._reason or reason
        self._news.set()

    async def batches(self) -> AsyncIterator[list[LiveFrame]]:
        """Yield lists of frames: a `ping`; events and gaps, or pings while none come; an `end` with its reason."""
        yield [self._at(PING)]
        if self._missing:
            yield [notice(self._window.id_of(self._position), GAP, self._missing, advice=READ_AGAIN)]
        while True:
            self._news.clear()
            while self._position < self._window.newest:
                if not self._window.holds_after(self._position):
                    yield [self._at(END, TOO_SLOW)]
                    return
                if frames := self._next():
                    yield frames
                else:
                    await asyncio.sleep(0)
            if self._reason:
                yield [self._at(END, self._reason)]
                return
            if not await self._news_in_time():
                yield [self._at(PING)]

    def _next(self) -> list[LiveFrame]:
        frames = self._window.after(self._position, MOST_AT_ONCE)
        self._position += len(frames)
        takes = self._selection.takes
        return [frame for frame in frames if frame.event is None or takes(frame.event)]

    async def _news_in_time(self) -> bool:
        try:
            async with asyncio.timeout(self._ping_seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _at(self, name: str, reason: str = "") -> LiveFrame:
        """Return a `ping` or `end` frame; its id names the last frame read, after which a reader can resume."""
        identity = self._window.id_of(self._position)
        return notice(identity, name, reason) if reason else LiveFrame(identity, name, b"{}")
