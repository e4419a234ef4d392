"""Live events: what happens in the fleet, for streams of server-sent events and for WebSockets.

One subscription to the broker (`LiveFeed`) fills one window of numbered frames (`LiveWindow`), and each stream
(`LiveStream`) is a position in that window and a filter. Where events may be missing, the window has a gap, which every
stream passes on. The module knows no web framework; its faces are in `coditect/api/routes/events.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from coditect.aio.supervisor import Backoff, Supervisor, happened
from coditect.broker.port import Broker
from coditect.errors import CoditectError, Overloaded
from coditect.messaging.event_publisher import MUTE_SECONDS
from coditect.messaging.event_stream import EventFilter, EventSubscription
from coditect.model.message import Event
from coditect.wire.events import as_document
from coditect.wire.json import dumps

MOST_FRAMES = 10_000
MOST_BYTES = 16 * 2**20
GAP = "gap"
"""The name of a frame that says where events may be missing."""
END = "end"
"""The name of the last frame of a stream that the server ends."""
READ_AGAIN = "events may be missing here: read the state again"


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A message of the live stream: an event, or a notice: `gap` (events may be missing), `ping` or `end`."""

    id: str
    name: str
    """Empty for an event, else `gap`, `end` or `ping`."""
    body: bytes
    """The CloudEvent, or the reason, as JSON in one line."""
    event: Event | None = None


def notice(identity: str, name: str, reason: str, **facts: Any) -> LiveFrame:
    """Return a frame with a notice of the server in place of an event, such as `gap`, and its reason."""
    return LiveFrame(identity, name, dumps({"reason": reason, **facts}))


class LiveWindow:
    """The latest events and gap notices as numbered frames, bounded by number and bytes; the oldest are dropped."""

    def __init__(self, epoch: str, *, most_frames: int = MOST_FRAMES, most_bytes: int = MOST_BYTES) -> None:
        self.epoch = epoch
        self._most_frames = most_frames
        self._most_bytes = most_bytes
        self._frames: dict[int, LiveFrame] = {}
        self._bytes = 0
        self.newest = 0
        """The number of the last frame; 0 before the first."""
        self._oldest = 1

    def add(self, event: Event) -> None:
        """Append an event as the next frame; the oldest frames leave a window that is full."""
        self._append(LiveFrame(self.id_of(self.newest + 1), "", dumps(as_document(event)), event))

    def add_gap(self, reason: str) -> None:
        """Append a gap: events before this frame may be missing."""
        self._append(notice(self.id_of(self.newest + 1), GAP, reason, advice=READ_AGAIN))

    def _append(self, frame: LiveFrame) -> None:
        self.newest += 1
        self._frames[self.newest] = frame
        self._bytes += len(frame.body)
        while len(self._frames) > self._most_frames or (self._bytes > self._most_bytes and len(self._frames) > 1):
            self._bytes -= len(self._frames.pop(self._oldest).body)
            self._oldest += 1

    def id_of(self, number: int) -> str:
        """Return the id of the frame with a number: the process's epoch and the number."""
        return f"{self.epoch}-{number}"

    def holds_after(self, number: int) -> bool:
        """Tell whether the window still holds every frame numbered above `number`; False if `number` is yet to come."""
        return self._oldest <= number + 1 <= self.newest + 1

    def after(self, number: int, most: int) -> list[LiveFrame]:
        """Return in order up to `most` frames that follow the frame with a number; the window must hold them."""
        return [self._frames[one] for one in range(number + 1, min(self.newest, number + most) + 1)]

    def resume(self, last_id: str) -> tuple[int, str]:
        """Return the number of the frame after which a stream resumes, and why it misses frames (empty if none).

        `last_id` is the id of the last frame that the reader has; empty for a reader that has none.
        """
        if not last_id:
            return self.newest, ""
        epoch, _, digits = last_id.rpartition("-")
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else -1
        if epoch != self.epoch:
            return self.newest, "the last event is not of this process"
        if not self.holds_after(number):
            return self.newest, "the last event is older than what is kept"
        return number, ""


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
            if not await happened(self._news, self._ping_seconds):
                yield [self._at(PING)]

    def _next(self) -> list[LiveFrame]:
        frames = self._window.after(self._position, MOST_AT_ONCE)
        self._position += len(frames)
        takes = self._selection.takes
        return [frame for frame in frames if frame.event is None or takes(frame.event)]

    def _at(self, name: str, reason: str = "") -> LiveFrame:
        """Return a `ping` or `end` frame; its id names the last frame read, after which a reader can resume."""
        identity = self._window.id_of(self._position)
        return notice(identity, name, reason) if reason else LiveFrame(identity, name, b"{}")


MOST_PUBLISHERS = 10_000
MOST_DIGITS = 18
"""A longer number is a stranger's id."""


class Continuity:
    """The number of the last event of each publisher, by which a missing event is noticed."""

    def __init__(self, most: int = MOST_PUBLISHERS) -> None:
        self._most = most
        self._last: OrderedDict[str, int] = OrderedDict()

    def reset(self) -> None:
        """Forget all publishers, whose next events may have any number."""
        self._last.clear()

    def follows(self, identity: str) -> bool:
        """Tell whether no event is missing between the publisher's last one and the one with this id; note the id.

        The first event of a publisher always follows, and so does one whose id has no number.
        """
        publisher, _, digits = identity.rpartition("-")
        if not publisher or not (digits.isascii() and digits.isdigit() and len(digits) <= MOST_DIGITS):
            return True
        number, last = int(digits), self._last.get(publisher)
        self._last[publisher] = number if last is None else max(number, last)
        self._last.move_to_end(publisher)
        if len(self._last) > self._most:
            self._last.popitem(last=False)
        return last is None or number <= last + 1


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
