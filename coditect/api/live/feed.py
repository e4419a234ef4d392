"""The feed: one subscription to the events of the fleet, for all streams of the process.

The subscription is made for the first stream and ended some time after the last one, because a fleet without a listener
sends no events at all. Wherever events may be missing, the window gets a gap: when the subscription begins (publishers
that no announcement reaches take up to five seconds to notice a listener), when the broker has lost it, and when the
numbers of a publisher's events are not in a row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from secrets import token_hex
from types import TracebackType
from typing import Self

from coditect.aio.backoff import Backoff
from coditect.aio.supervisor import Supervisor
from coditect.api.live.continuity import Continuity
from coditect.api.live.stream import LiveStream
from coditect.api.live.window import LiveWindow
from coditect.broker.port import Broker
from coditect.errors import CoditectError, Overloaded
from coditect.messaging.event_filter import EventFilter
from coditect.messaging.event_publisher import MUTE_SECONDS
from coditect.messaging.event_stream import EventSubscription
from coditect.model.event import Event

log = logging.getLogger(__name__)

MOST_STREAMS = 1_000
GATHER_SECONDS = 0.02
"""How long events are gathered before the streams are woken, in seconds."""
IDLE_SECONDS = 60.0
"""How long the subscription outlives the last stream, in seconds, so that a reader finds its place again."""
BEGUN = "the events of the first seconds of the subscription may be incomplete"
LOST = "the broker had lost the subscription"
SKIPPED = "the broker dropped events"
LOOKS = Backoff(0.1, 1.0)


class LiveFeed:
    """The fleet's live events as one process gets them, inside `async with`, for any number of streams.

    `name` is the process's, for its queue of events.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        name: str,
        window: LiveWindow | None = None,
        most_streams: int = MOST_STREAMS,
        idle_seconds: float = IDLE_SECONDS,
        settle_seconds: float = MUTE_SECONDS,
    ) -> None:
        self._broker = broker
        self.queue = f"events.{name}.live"
        self.window = window or LiveWindow(token_hex(4))
        self._most_streams = most_streams
        self._idle_seconds = idle_seconds
        self._settle_seconds = settle_seconds
        self._continuity = Continuity()
        self._streams: set[LiveStream] = set()
        self._background = Supervisor()
        self._changing = asyncio.Lock()
        self._subscription: EventSubscription | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._is_lost = False
        self._ended = ""

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return len(self._streams)

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end("the server stops")
        await self._unsubscribe()
        await self._background.__aexit__(kind, error, trace)

    def end(self, reason: str) -> None:
        """End every stream with a reason, and open no more; a server calls it before it waits for open connections."""
        self._ended = reason
        for stream in self._streams:
            stream.end(reason)

    @asynccontextmanager
    async def stream(self, selection: EventFilter, last_id: str = "") -> AsyncIterator[LiveStream]:
        """Open a stream of the events that pass the filter, after the last message that its reader has, or from now on.

        Raises:
            Overloaded: when there are too many streams, or the server stops; retryable.
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        self._check_room()
        await self._subscribe()
        self._check_room()  # others may have opened theirs, or the server may have begun to stop
        stream = LiveStream(self.window, selection, last_id)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._later("idle", self._idle_seconds, self._end_if_idle)

    def _check_room(self) -> None:
        if self._ended or len(self._streams) >= self._most_streams:
            reason = self._ended or "too many streams are open"
            raise Overloaded("No stream of events can be opened now", reason=reason, retry_after=5)

    # -- the subscription -------------------------------------------------------------------------------

    async def _subscribe(self) -> None:
        async with self._changing:
            if self._subscription is not None:
                return
            self._continuity.reset()
            self._is_lost = False
            subscription = EventSubscription(self._broker, self.queue, ("#",), on_event=self.take, on_lost=self._lost)
            await subscription.__aenter__()
            self._subscription = subscription
            if self.window.newest:
                self._gap("no stream was open for a while")
            self._later("settle", self._settle_seconds, lambda: self._gap(BEGUN))

    def _end_if_idle(self) -> None:
        if not self._streams:
            self._background.start(self._unsubscribe(only_idle=True), name="live events: unsubscribe")

    async def _unsubscribe(self, *, only_idle: bool = False) -> None:
        async with self._changing:
            if only_idle and self._streams:
                return
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            subscription, self._subscription = self._subscription, None
            if subscription is not None:
                await subscription.__aexit__(None, None, None)

    def _lost(self) -> None:
        self._is_lost = True
        if self._subscription is not None:
            self._background.start(self._recover(self._subscription), name="live events: recover")

    async def _recover(self, subscription: EventSubscription) -> None:
        """Wait until a lost subscription is back, announce it to publishers, and tell the streams of possible gaps.

        One notice comes at once, and one when all publishers have had the time to notice the subscription.
        """
        pauses = LOOKS.pauses()
        while subscription is self._subscription:
            try:
                if subscription.active:
                    self._found()
                    await subscription.announce()
                    self._later("settle", self._settle_seconds, lambda: self._gap(BEGUN))
                    return
            except CoditectError as error:
                log.info("The events' subscription is not back yet", extra={"reason": str(error)})
            await asyncio.sleep(next(pauses))

    def _found(self) -> None:
        """If the subscription was lost, note that it is back, and tell the streams that events may be missing."""
        if self._is_lost:
            self._is_lost = False
            self._continuity.reset()
            self._gap(LOST)

    # -- events -----------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Keep an event for the streams, after a notice if earlier ones are missing; wake the streams within 20 ms."""
        self._found()
        if not self._continuity.follows(event.id):
            self.window.add_gap(SKIPPED)
        self.window.add(event)
        if "wake" not in self._timers:
            self._later("wake", GATHER_SECONDS, self._wake)

    def _gap(self, reason: str) -> None:
        self.window.add_gap(reason)
        self._wake()

    def _wake(self) -> None:
        for stream in self._streams:
            stream.wake()

    def _later(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        """Start a named timer that calls `act` after some seconds; it replaces a pending timer of the same name."""

        def due() -> None:
            del self._timers[name]
            act()

        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, due)
