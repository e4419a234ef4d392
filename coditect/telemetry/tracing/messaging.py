"""The names and attributes of Coditect's spans, by OpenTelemetry's semantic conventions for messaging and RabbitMQ.

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
========================================  ========  ==========================================================

What is the same for all messages of one destination is built once. A correlation id is no attribute: it is what makes
a reply believable (see `messaging/rpc.py`).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from coditect.model.task import Task
from coditect.telemetry.tracing.port import SKIPPED, Span, SpanKind, Tracing
from coditect.wire import routing
from coditect.wire.headers.trace import TraceContext

Attributes = dict[str, str | int | bool]
PRODUCER, CONSUMER = SpanKind.PRODUCER, SpanKind.CONSUMER


@lru_cache(maxsize=4096)
def _sent_to(exchange: str, routing_key: str) -> tuple[str, Attributes]:
    name = f"{exchange}:{routing_key}" if routing_key else exchange
    return f"publish {name}", {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": name,
        "messaging.rabbitmq.destination.routing_key": routing_key,
    }


@lru_cache(maxsize=4096)
def _processed_from(exchange: str, routing_key: str, queue: str) -> tuple[str, Attributes]:
    name = ":".join(dict.fromkeys(one for one in (exchange, routing_key, queue) if one))
    return f"process {exchange if exchange == routing.AGENTS else name}", {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": name,
        "messaging.rabbitmq.destination.routing_key": routing_key,
    }


@lru_cache(maxsize=4096)
def _of_capability(capability: str, priority: str) -> Attributes:
    return {"coditect.capability": capability, "coditect.priority": priority}


def _of_task(task: Task) -> Attributes:
    found = _of_capability(task.capability, task.priority.value) | {"coditect.attempt": task.attempt}
    if task.id is not None:
        found["messaging.message.id"] = found["coditect.task.id"] = task.id
    if task.redrive:
        found["coditect.redrive"] = task.redrive
    if task.owner is not None:
        found |= {"coditect.workflow.id": task.owner.workflow, "coditect.node_id": task.owner.node}
    return found


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
            span.attributes = span.attributes | {"coditect.redelivered": True}
        if task.errors:
            span.link(task.errors[-1].get("trace"))
    return span


def begin_request(tracing: Tracing, workflow: str, name: str) -> Span | None:
    """Begin the span of a request that starts a workflow, as a child of the current span."""
    span_name, attributes = _sent_to(routing.CONTROL, "")
    span = tracing.begin(span_name, PRODUCER)
    if span is not None and span.sampled:
        span.attributes = attributes | {"coditect.workflow.id": workflow, "coditect.workflow.name": name}
    return span


def begin_record(
    tracing: Tracing, exchange: str, parent: TraceContext, attributes: Attributes, *, start_ns: int | None = None
) -> Span | None:
    """Begin the span in which a dispatcher records a message from `exchange` in the ledger, as a child of `parent`."""
    name, common = _processed_from(exchange, "", "")
    span = tracing.begin(name, CONSUMER, parent, start_ns=start_ns)
    if span is not None and span.sampled:
        span.attributes = common | attributes
    return span
