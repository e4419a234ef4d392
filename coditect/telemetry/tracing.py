"""The port of tracing: spans of one process, which belong to traces that messages carry from process to process.

A span is begun at once and described later, and only where it is `sampled`: what is not sampled is a text that is
passed on, and where tracing is off there is no span at all. A trace goes on in another process by the three headers of
W3C Trace Context and W3C Baggage.

The names and attributes of Coditect's spans follow OpenTelemetry's semantic conventions for messaging and RabbitMQ.

========================================  ========  ==========================================================
span                                      kind      of
========================================  ========  ==========================================================
``publish coditect.submit:<key>``         PRODUCER  a client, a handler that asks another agent, a dispatcher
``process <exchange>:<key>:<queue>``      CONSUMER  the agent that runs the handler
``publish coditect.dead:<key>``           PRODUCER  an agent that gives a task up
``publish coditect.tasks:<key>``          PRODUCER  a redrive
``publish coditect.control``              PRODUCER  a client that starts a workflow
``process coditect.control``              CONSUMER  the dispatcher that records the workflow
``process coditect.results``              CONSUMER  the dispatcher that records the end of a node's attempt
``await approval``, ``signal``, ``time``  INTERNAL  the dispatcher that ends a node's wait
``lock``                                  INTERNAL  an agent or client, from the request for a lock to its release
``hand off``                              INTERNAL  an agent that offers its running task to others
========================================  ========  ==========================================================

Every span of a workflow has the workflow's id and name and the node's name. They travel as W3C baggage, so that the
spans of what a node's handler asks for have them, too.
What is the same for all messages of one destination is built once. A correlation id is no attribute: it is what makes
a reply believable (see `messaging/rpc.py`).
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
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Self, TypeAlias, TypeVar

from coditect.model.limits import KEY_LOCKS
from coditect.model.message import value
from coditect.model.task import Task
from coditect.wire import routing
from coditect.wire.headers import (
    NODE_ID,
    WORKFLOW_ID,
    WORKFLOW_NAME,
    TraceContext,
    put_trace,
    with_members,
    workflow_members,
)

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

    def add(self, attributes: Mapping[str, str | int | bool]) -> None:
        """Add attributes to the span, if it is sampled."""
        if self.sampled:
            self.attributes = {**self.attributes, **attributes}

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

    Made for most tasks under load, so it holds nothing else; a trace continues through it under its parent's span id.
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


class Tracing:
    """The port by which the parts of a process begin spans; its methods never block the event loop or raise.

    This class itself is no tracing: there are no spans, and trace contexts pass on unchanged.
    """

    active: bool = False
    """True when tracing is on, so that `begin` makes spans."""
    alone: bool = True
    """True when only Coditect makes spans in the process; then OpenTelemetry gets sampled spans only."""

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

    def current(self, span: Span) -> AbstractContextManager[object]:
        """Make a span the current one inside the block: for its calls, its log lines and the spans that begin there."""
        return nullcontext()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send the remaining spans, within a limited time."""


NO_TRACING = Tracing()

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


Attributes = dict[str, str | int | bool]
PRODUCER, CONSUMER = SpanKind.PRODUCER, SpanKind.CONSUMER


@lru_cache(maxsize=4096)
def _sent_to(exchange: str, routing_key: str) -> tuple[str, Attributes]:
    name = f"{exchange}:{routing_key}" if routing_key else exchange
    return f"publish {name}", _messaging("publish", "send", name, routing_key)


@lru_cache(maxsize=4096)
def _processed_from(exchange: str, routing_key: str, queue: str) -> tuple[str, Attributes]:
    name = ":".join(dict.fromkeys(part for part in (exchange, routing_key, queue) if part))
    span = f"process {exchange if exchange == routing.AGENTS else name}"
    return span, _messaging("process", "process", name, routing_key)


def _messaging(operation: str, operation_type: str, destination: str, routing_key: str) -> Attributes:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation_type,
        "messaging.destination.name": destination,
        "messaging.rabbitmq.destination.routing_key": routing_key,
    }


@lru_cache(maxsize=4096)
def _of_capability(capability: str, priority: str) -> Attributes:
    return {"coditect.capability": capability, "coditect.priority": priority}


def _of_task(task: Task) -> Attributes:
    found = _of_capability(task.capability, task.priority.value) | {"coditect.attempt": task.attempt}
    found |= of_workflow(task)
    if task.id is not None:
        found["messaging.message.id"] = found["coditect.task.id"] = task.id
    if task.redrive:
        found["coditect.redrive"] = task.redrive
    return found


def of_workflow(task: Task) -> dict[str, str]:
    """Return a task's workflow and node as attributes: its own, or those of the node whose handler asked for it."""
    members = workflow_members(task.baggage)
    return members if task.owner is None else members | {WORKFLOW_ID: task.owner.workflow, NODE_ID: task.owner.node}


def publish_id(task_id: str, publication: int) -> int:
    """Return the span id of a workflow node's publication, computed from the task id and the publication number.

    It follows from what the ledger knows, so that the next attempt can be linked to this one, by any dispatcher.
    """
    return int.from_bytes(blake2b(f"{task_id}/{publication}".encode(), digest_size=8).digest()) or 1


def begin_publish(
    tracing: Tracing,
    task: Task,
    *,
    exchange: str,
    routing_key: str,
    parent: TraceContext | None = None,
    publication: tuple[int, int] | None = None,
) -> Span | None:
    """Begin the span of a task's publish, as a child of `parent`, of the task's trace context, or of the current span.

    `publication` has the numbers of the node's publication and of the one before, 0 for none. The span links to the
    attempt before, as the publication or the task's history names it.
    """
    name, attributes = _sent_to(exchange, routing_key)
    parent = parent or (task if task.traceparent is not None else None)
    if publication is None:
        span = tracing.begin(name, PRODUCER, parent)
    else:
        began_ns = None if task.published_at_ms is None else task.published_at_ms * 1_000_000
        own = publish_id(task.id or "", publication[0])
        span = tracing.begin(name, PRODUCER, parent, span_id=own, start_ns=began_ns)
    if span is not None and span.sampled:
        span.attributes = attributes | _of_task(task)
        if task.owner is not None:
            span.baggage = with_members(span.baggage, {NODE_ID: task.owner.node})
        if publication is not None and publication[1]:
            before = publish_id(task.id or "", publication[1])
            span.link(f"00-{span.trace_id:032x}-{before:016x}-01")
        elif task.errors:
            span.link(task.errors[-1].get("trace"))
    return span


def begin_process(
    tracing: Tracing, task: Task, *, agent: str, origin: tuple[str, str, str], redelivered: bool
) -> Span | None:
    """Begin an attempt's span in an agent; for a client's direct task without a trace, return the unrecorded SKIPPED.

    `origin` is the exchange, the routing key and the queue. Every attempt has its own span; that of a retry or a
    redrive links to the attempt before. A task of a client of ours that comes without a trace is in none, for the
    client has decided so.
    """
    if task.traceparent is None and task.published_at_ms is not None and task.owner is None:
        return SKIPPED
    name, attributes = _processed_from(*origin)
    span = tracing.begin(name, CONSUMER, task)
    if span is not None and span.sampled:
        span.attributes = attributes | _of_task(task) | {"coditect.agent.id": agent}
        if redelivered:
            span.add({"coditect.redelivered": True})
        if task.errors:
            span.link(task.errors[-1].get("trace"))
    return span


def begin_request(tracing: Tracing, workflow: str, name: str) -> Span | None:
    """Begin the span of a request that starts a workflow, as a child of the current span."""
    span_name, attributes = _sent_to(routing.CONTROL, "")
    span = tracing.begin(span_name, PRODUCER)
    if span is not None and span.sampled:
        span.attributes = attributes | {WORKFLOW_ID: workflow, WORKFLOW_NAME: name}
    return span


def begin_record(
    tracing: Tracing,
    exchange: str,
    parent: TraceContext,
    attributes: Mapping[str, str | int | bool],
    *,
    start_ns: int | None = None,
) -> Span | None:
    """Begin the span in which a dispatcher records a message from `exchange` in the ledger, as a child of `parent`."""
    name, common = _processed_from(exchange, "", "")
    span = tracing.begin(name, CONSUMER, parent, start_ns=start_ns)
    if span is not None and span.sampled:
        span.attributes = {**common, **attributes}
    return span


def begin_step(
    tracing: Tracing,
    name: str,
    parent: TraceContext | None,
    attributes: Mapping[str, str | int | bool],
    *,
    start_ns: int | None = None,
) -> Span | None:
    """Begin the span of something within a trace that is no message, such as a lock, a handoff or a wait."""
    span = tracing.begin(name, SpanKind.INTERNAL, parent, start_ns=start_ns)
    if span is not None and span.sampled:
        span.attributes = {**workflow_members(span.baggage), **attributes}
    return span


def begin_lock(tracing: Tracing, resources: list[str], mode: str, parent: TraceContext | None = None) -> Span | None:
    """Begin the span of a lock, from its request to its release, as a child of `parent` or of the current span.

    The lock of a concurrency key has no span: the key is made of a task's input.
    """
    if resources[0].startswith(KEY_LOCKS):
        return None
    return begin_step(
        tracing, "lock", parent, {"coditect.lock.resources": ", ".join(resources), "coditect.lock.mode": mode}
    )
