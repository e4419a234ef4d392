"""The port of tracing: spans of one process, which belong to traces that messages carry from process to process.

A span is begun at once and described later, and only where it is `sampled`: what is not sampled is a text that is
passed on, and where tracing is off there is no span at all. A trace goes on in another process by the three headers of
W3C Trace Context and W3C Baggage.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from coditect.model.value import value
from coditect.wire.headers.trace import TraceContext, put_trace

T = TypeVar("T")

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


class SpanKind(Enum):
    """The kind of a span, as in OpenTelemetry: the publish of a message, its processing, or other work."""

    INTERNAL = auto()
    PRODUCER = auto()
    """The publish of a message that somebody else processes."""
    CONSUMER = auto()
    """The processing of a message."""


@value
class SpanPlace:
    """The trace id, the span id and the sampled flag of a `traceparent`."""

    trace_id: int
    span_id: int
    sampled: bool


def read_traceparent(text: str | None) -> SpanPlace | None:
    """Parse a `traceparent`; return None for a missing one, and for one that W3C Trace Context calls invalid."""
    if text is None or (match := _TRACEPARENT.fullmatch(text)) is None:
        return None
    trace_id, span_id = int(match[1], 16), int(match[2], 16)
    if not trace_id or not span_id:
        return None
    return SpanPlace(trace_id, span_id, bool(int(match[3], 16) & _SAMPLED))


def sampled_trace(traceparent: str) -> str:
    """Return the id of the trace that a `traceparent` names, as 32 hex digits; empty when the trace is not recorded."""
    place = read_traceparent(traceparent)
    return f"{place.trace_id:032x}" if place is not None and place.sampled else ""


@dataclass(frozen=True, slots=True)
class TraceHeaders:
    """The trace headers of a message as they came, which serve as the trace context of further spans and messages."""

    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None


Ended: TypeAlias = "Callable[[Span], None]"


class Span:
    """A span that has begun; as a `TraceContext` it is the parent of further spans, in any process.

    A sampled span is recorded when it has ended. One that is not sampled may be an `UnsampledSpan`.
    """

    attributes: Mapping[str, str | int | bool] = MappingProxyType({})
    links: tuple[SpanPlace, ...] = ()
    end_ns = 0
    error = ""
    """The class of the failure, `error.type`; empty for a span that ended well."""
    message = ""

    def __init__(
        self,
        name: str,
        kind: SpanKind,
        place: SpanPlace,
        ended: Ended,
        parent: TraceContext | None = None,
        *,
        parent_id: int | None = None,
        tracestate: str | None = None,
        start_ns: int = 0,
    ) -> None:
        """Begin a span with the trace and span ids in `place`; when a sampled span ends, `ended` is called with it."""
        self.name, self.kind = name, kind
        self.trace_id, self.span_id, self.sampled = place.trace_id, place.span_id, place.sampled
        self.parent_id, self.tracestate = parent_id, tracestate
        self.baggage = None if parent is None else parent.baggage
        self.start_ns = start_ns
        self._ended = ended

    @property
    def traceparent(self) -> str:
        """The span as a W3C `traceparent`."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{'01' if self.sampled else '00'}"

    def link(self, traceparent: str | None) -> None:
        """Link the span to the one that `traceparent` names, if any, which may belong to another trace."""
        if (place := read_traceparent(traceparent)) is not None:
            self.links = (*self.links, place)

    def end(self, error: str = "", message: str = "") -> None:
        """End and record the span, with its error's class and message, if any; do nothing if it is not sampled."""
        if self.sampled:
            self.error, self.message, self.end_ns = error, message, time.time_ns()
            self._ended(self)

    def end_with(self, work: asyncio.Future[None]) -> None:
        """End the span with the outcome of a finished future; usable as the future's done callback."""
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        self.end("" if error is None else type(error).__name__, "" if error is None else str(error))

    def headers(self) -> dict[str, Any]:
        """Return the trace headers for a message whose parent is the span."""
        found: dict[str, Any] = {}
        put_trace(found, self)
        return found


class UnsampledSpan(Span):
    """A span that is not recorded: its trace context as text, which is only passed on.

    Made for most tasks under load, so it holds nothing else; a trace goes on through it under its parent's span id.
    """

    name, kind, sampled, parent_id = "", SpanKind.INTERNAL, False, None

    def __init__(self, traceparent: str, tracestate: str | None = None, baggage: str | None = None) -> None:
        """Create the span of a trace context that is passed on, whose flag says that it is not sampled."""
        self._traceparent, self.tracestate, self.baggage = traceparent, tracestate, baggage

    @property
    def traceparent(self) -> str:
        """The trace context as a W3C `traceparent`."""
        return self._traceparent

    @property
    def trace_id(self) -> int:  # type: ignore[override] # parsed only where a log line asks for it
        """The id of the trace."""
        return int(self.traceparent[3:35], 16)

    @property
    def span_id(self) -> int:  # type: ignore[override]
        """The id of the parent span, since this one has no id of its own."""
        return int(self.traceparent[36:52], 16)


class SkippedSpan(UnsampledSpan):
    """The span of a task that begins a trace which is not sampled; a single object stands for all such spans.

    The task itself travels without a trace context. What is sent on from it carries an unsampled one, so that
    nothing below begins a trace; each time it is asked it is another one.
    """

    def __init__(self) -> None:
        """Create the span without a trace context, since it stands for many traces."""

    @property
    def traceparent(self) -> str:
        """The `traceparent` of a trace that is not sampled, with new random ids at each call."""
        return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-00"

    tracestate = baggage = None


SKIPPED = SkippedSpan()
"""The one `SkippedSpan`, for every task that begins a trace which is not kept."""


def is_unsampled(traceparent: str | None) -> bool:
    """Tell, without parsing the ids, whether a `traceparent` is valid and its trace is not sampled."""
    return traceparent is not None and traceparent[-3:] == "-00" and _TRACEPARENT.fullmatch(traceparent) is not None


async def ended_with(span: Span, work: Awaitable[T]) -> T:
    """Await `work` and return its result; end the span afterward, as failed if `work` raises."""
    try:
        done = await work
    except BaseException as error:
        span.end(type(error).__name__, str(error))
        raise
    span.end()
    return done


class Tracing(Protocol):
    """The port by which the parts of a process begin spans; its methods never block the event loop or raise."""

    @property
    def active(self) -> bool:
        """True when tracing is on, so that `begin` makes spans."""

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: TraceContext | None = None,
        *,
        span_id: int | None = None,
        start_ns: int | None = None,
    ) -> Span | None:
        """Begin a span below `parent`, else below the current span, else in a new trace; return None if tracing is off.

        Without a parent it begins a new trace, and is `SKIPPED` if that is not kept. `span_id` gives the span a known
        id, `start_ns` an earlier beginning.
        """

    @property
    def alone(self) -> bool:
        """True when only Coditect makes spans in the process; then OpenTelemetry gets sampled spans only."""

    def current(self, span: Span) -> AbstractContextManager[object]:
        """Make a span the current one inside the block: for its calls, its log lines and the spans that begin there."""

    async def __aenter__(self) -> Self:
        """Return the tracing, ready to begin spans."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the remaining spans, within a limited time."""


class NoTracing:
    """The adapter of the tracing port for no tracing: there are no spans, and trace contexts pass on unchanged."""

    active, alone = False, True

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: TraceContext | None = None,
        *,
        span_id: int | None = None,
        start_ns: int | None = None,
    ) -> Span | None:
        """Begin no span, and return None."""

    def current(self, span: Span) -> AbstractContextManager[object]:
        """Return a context manager without an effect."""
        return nullcontext()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End without waiting, for there are no spans to send."""


NO_TRACING = NoTracing()

CURRENT: ContextVar[Span | None] = ContextVar("coditect_span", default=None)
"""The span in which the present code runs; set by `Tracing.current`."""


def current_trace_ids() -> dict[str, str]:
    """Return the current span's `trace_id` and `span_id` in hexadecimal, for a log line; {} without a current span.

    Empty also in a task whose trace is not kept from its beginning: its id tells its lines.
    """
    span = CURRENT.get()
    if span is None or span is SKIPPED:
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
