"""The tracing adapter that sends spans by OTLP, over HTTP or gRPC, with OpenTelemetry's SDK.

A span of ours is an object of a few fields until it has ended, and is given to the SDK's batch processor then. That
costs a tenth of a span of the SDK, of which nothing else is needed: the sampler decides at the beginning, the batch
processor keeps a bounded number of ended spans and drops the others, and the exporter sends them in a thread.

All of OpenTelemetry's standard variables apply: `OTEL_EXPORTER_OTLP_*`, `OTEL_TRACES_SAMPLER*`, `OTEL_BSP_*`,
`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SDK_DISABLED`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from importlib.metadata import version
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from coditect.errors import SetupError
from coditect.telemetry.tracing import (
    CURRENT,
    NO_TRACING,
    SKIPPED,
    Span,
    SpanKind,
    SpanPlace,
    Tracing,
    UnsampledSpan,
    is_unsampled,
    read_traceparent,
)
from coditect.wire.headers import TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

log = logging.getLogger(__name__)


class NewTraces:
    """A sampler that keeps every new trace, up to a number per second (a token bucket of one second's tokens).

    What a process does in an hour can be looked at whole, and a load test costs no more than so many traces.
    """

    def __init__(self, per_second: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._now, self._most = per_second, now, max(1.0, per_second)
        self._left, self._at = self._most, now()

    def keeps(self) -> bool:
        """Take a token for a new trace; return False when none is left, so that the trace is not kept."""
        now = self._now()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


EXPORT_CLOSE_SECONDS = 2.0
"""How long the end of a process waits for the export of its last spans."""
QUIET_SECONDS = 60.0
"""The least time between two log lines that say that the collector does not answer."""
NEW_TRACES_PER_SECOND = 50.0
"""How many new traces a process keeps per second, unless `OTEL_TRACES_SAMPLER` says which."""
GRPC = "grpc"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
LOUD = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
"""The loggers that tell of each batch that could not be sent, and of each span that is dropped."""
_KINDS = MappingProxyType({kind: trace.SpanKind[kind.name] for kind in SpanKind})
_SAMPLED, _UNSAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_NO_PARENT = Context()
_UNSET = Status(StatusCode.UNSET)
_SCOPE = InstrumentationScope("coditect", version("coditect"))


def open_otlp(service: str, instance: str, *, new_per_second: float = NEW_TRACES_PER_SECOND) -> Tracing:
    """Return the tracing that sends spans to the collector of the `OTEL_*` variables; NO_TRACING if they disable it.
    Without `OTEL_TRACES_SAMPLER` every trace is kept, up to so many new ones a second. Connects to nothing yet.

    Raises:
        SetupError: when the collector's endpoint is malformed, or holds a password that the exporter would show.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return NO_TRACING
    exporter = _exporter()
    quiet = Quiet()
    for name in LOUD:  # a filter sees what its own logger logs, and nothing of the loggers below
        logging.getLogger(name).addFilter(quiet)
    resource = Resource.create(_described(service, instance))
    sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler  # by OTEL_TRACES_SAMPLER
    new = None if os.environ.get("OTEL_TRACES_SAMPLER") else NewTraces(new_per_second)
    return OtlpTracing(BatchSpanProcessor(exporter), sampler=sampler, resource=resource, new=new)


def _described(service: str, instance: str) -> dict[str, str]:
    """Return a process's attributes for OpenTelemetry: instance, version, and service name if no variable has one."""
    described = {"service.instance.id": instance, "service.version": version("coditect")}
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return described if named else {"service.name": service} | described


def _exporter() -> SpanExporter:
    """Return the exporter for the protocol of the `OTEL_EXPORTER_OTLP_*` variables, `http/protobuf` by default."""
    general = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general)
    for variable in ENDPOINTS:
        _check_endpoint(os.environ.get(variable, ""), variable, protocol)
    if protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc  # noqa: PLC0415

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http  # noqa: PLC0415

    return Http()


def _check_endpoint(text: str, variable: str, protocol: str) -> None:
    """Check a collector's endpoint, which may be empty.

    Over HTTP a user and password may be in it. gRPC knows none, and logs them as a part of the host.
    """
    try:
        parts, _ = urlsplit(text), urlsplit(text).port
        known = not text or protocol == GRPC or (parts.scheme in ("http", "https") and bool(parts.hostname))
    except ValueError:
        known = False
    if not known or not text.isprintable() or " " in text:  # what urllib says may hold the password
        fix = f"{variable}=http://localhost:{4317 if protocol == GRPC else 4318}; a password belongs into {HEADERS}"
        raise SetupError("The endpoint of the collector is no URL", variable=variable, fix=fix)
    if protocol == GRPC and "@" in text:
        fix = f"{HEADERS}=Authorization=Basic%20..., and no user or password in {variable}"
        raise SetupError("The endpoint of a collector by gRPC has no user or password", variable=variable, fix=fix)


class Quiet(logging.Filter):
    """The log filter of OpenTelemetry's exporters: at most one line a minute for a collector that does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True, so that a log record is written, when no record was let through in the past minute."""
        if (now := time.monotonic()) < self._next:
            return False
        self._next = now + QUIET_SECONDS
        return True


class OtlpTracing(Tracing):
    """The tracing of a process whose ended spans go to a span processor of OpenTelemetry."""

    active = True

    def __init__(
        self, processor: SpanProcessor, *, sampler: Sampler, resource: Resource, new: NewTraces | None = None
    ) -> None:
        """Create the tracing: `processor` gets ended spans; `new`, else `sampler`, chooses the new traces to record."""
        self._processor, self._sampler, self._resource = processor, sampler, resource
        self._new = new
        self.alone = not _others_trace()
        """Whether nothing else made spans in this process, when a trace was last kept."""
        self._inherits = isinstance(sampler, ParentBased)
        """Whether a span is sampled exactly if its parent is: so it is with every parent-based sampler of the SDK."""

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: TraceContext | None = None,
        *,
        span_id: int | None = None,
        start_ns: int | None = None,
    ) -> Span | None:
        """Begin a child span of `parent`, else of OpenTelemetry's or Coditect's current span; else begin a trace."""
        place = tracestate = None
        if self._inherits and parent is not None and is_unsampled(parent.traceparent):
            return UnsampledSpan(parent.traceparent or "", parent.tracestate, parent.baggage)
        if parent is None and self._inherits and self.alone and ((now := CURRENT.get()) is None or now is SKIPPED):
            if now is SKIPPED or (self._new is not None and not self._new.keeps()):
                return SKIPPED
            self.alone = not _others_trace()
            if self.alone:
                return self._root(name, kind, span_id, start_ns)
        if parent is not None:
            place = read_traceparent(parent.traceparent)
            tracestate = None if place is None else parent.tracestate
        elif CURRENT.get() is not None or _others_trace():
            place, tracestate = _current()
        trace_id = random.getrandbits(128) or 1 if place is None else place.trace_id
        if place is not None and self._inherits:
            sampled = place.sampled
        elif place is None and self._new is not None:
            sampled = self._new.keeps()
        else:
            sampled, tracestate = self._drawn(name, kind, trace_id, place, tracestate)
        return Span(
            name,
            kind,
            SpanPlace(trace_id, span_id or random.getrandbits(64) or 1, sampled),
            self._ended,
            parent,
            parent_id=None if place is None else place.span_id,
            tracestate=tracestate,
            start_ns=start_ns or time.time_ns() if sampled else 0,
        )

    def _root(self, name: str, kind: SpanKind, span_id: int | None, start_ns: int | None) -> Span:
        """Begin a new trace's first span; without a rate limit (`new`), return SKIPPED if the sampler refuses it."""
        trace_id, tracestate, kept = random.getrandbits(128) or 1, None, True
        if self._new is None:
            kept, tracestate = self._drawn(name, kind, trace_id, None, None)
        if not kept:
            return SKIPPED
        own = SpanPlace(trace_id, span_id or random.getrandbits(64) or 1, sampled=True)
        return Span(name, kind, own, self._ended, tracestate=tracestate, start_ns=start_ns or time.time_ns())

    def _drawn(
        self, name: str, kind: SpanKind, trace_id: int, place: SpanPlace | None, tracestate: str | None
    ) -> tuple[bool, str | None]:
        """Ask the sampler whether to record a span; return its answer, and the span's tracestate."""
        context = _NO_PARENT if place is None else _context(place, tracestate)
        result = self._sampler.should_sample(context, trace_id, name, kind=_KINDS[kind])
        state = result.trace_state
        return result.decision is Decision.RECORD_AND_SAMPLE, state.to_header() if state else tracestate

    def current(self, span: Span) -> AbstractContextManager[object]:
        """Make a span the current one inside the block, for our own spans and logs and for OpenTelemetry's.

        OpenTelemetry hears of one that is not sampled only where somebody else makes spans, too.
        """
        return CurrentSpan(span, shared=span.sampled or not self.alone)

    def _ended(self, span: Span) -> None:
        own = SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=_state(span))
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(span.trace_id, span.parent_id, is_remote=True, trace_flags=_SAMPLED)
        attributes: Mapping[str, Any] = span.attributes
        status = _UNSET
        if span.error:
            attributes = {**attributes, "error.type": span.error}
            status = Status(StatusCode.ERROR, span.message or None)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                own,
                parent,
                self._resource,
                attributes,
                links=[Link(_span_context(place)) for place in span.links],
                kind=_KINDS[span.kind],
                status=status,
                start_time=span.start_ns,
                end_time=max(span.start_ns, span.end_ns),
                instrumentation_scope=_SCOPE,
            )
        )

    async def __aexit__(self, *_: object) -> None:
        """Send the remaining spans; a collector that does not answer delays the end by at most two seconds."""
        closing = Thread(target=self._processor.shutdown, name="close tracing", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, EXPORT_CLOSE_SECONDS)


class CurrentSpan:
    """The context manager that makes a span the current one, for OpenTelemetry's own spans too if it is `shared`."""

    __slots__ = ("_ours", "_shared", "_span", "_theirs")

    def __init__(self, span: Span, *, shared: bool) -> None:
        self._span, self._shared = span, shared
        self._theirs: Token[Context] | None = None

    def __enter__(self) -> None:
        span = self._span
        self._ours = CURRENT.set(span)
        if self._shared:
            self._theirs = attach(_context(SpanPlace(span.trace_id, span.span_id, span.sampled), span.tracestate))

    def __exit__(self, *_: object) -> None:
        if self._theirs is not None:
            detach(self._theirs)
        CURRENT.reset(self._ours)


def _others_trace() -> bool:
    """Tell whether the user's program, or an instrumentation of it, makes OpenTelemetry spans in this process too."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _current() -> tuple[SpanPlace | None, str | None]:
    """Return ids and tracestate of OpenTelemetry's current span, else of Coditect's; (None, None) if there is none."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        ours = CURRENT.get()
        return (None, None) if ours is None else (SpanPlace(ours.trace_id, ours.span_id, ours.sampled), ours.tracestate)
    return SpanPlace(context.trace_id, context.span_id, context.trace_flags.sampled), context.trace_state.to_header()


def _span_context(place: SpanPlace, tracestate: str | None = None) -> SpanContext:
    flags = _SAMPLED if place.sampled else _UNSAMPLED
    state = TraceState.from_header([tracestate]) if tracestate else None
    return SpanContext(place.trace_id, place.span_id, is_remote=True, trace_flags=flags, trace_state=state)


def _context(place: SpanPlace, tracestate: str | None) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(_span_context(place, tracestate)))


def _state(span: Span) -> TraceState | None:
    return TraceState.from_header([span.tracestate]) if span.tracestate else None
