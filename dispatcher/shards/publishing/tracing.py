"""The tracing spans of a shard, for traced workflows: one per publication of a node, and one per end of an attempt."""

from __future__ import annotations

from coditect.telemetry.tracing.messaging import begin_publish, begin_record, publish_id
from coditect.telemetry.tracing.port import Span, TraceHeaders, Tracing, read_traceparent
from coditect.wire import routing
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, Publication, Transition

_FAILED = (TaskState.FAILED, TaskState.DEAD, TaskState.REJECTED)
_ENDS = frozenset((*_FAILED, TaskState.COMPLETED, TaskState.CANCELED, TaskState.RETRY_WAIT))


def publish_span(tracing: Tracing, publication: Publication) -> Span | None:
    """Begin the span of a node's publication, which starts at its claim; None for a workflow that is not traced."""
    task = publication.task
    if task.traceparent is None:
        return None
    exchange, routing_key = routing.SUBMIT, routing.key_of(task)
    if publication.agent:
        exchange, routing_key = routing.AGENTS, ""  # the agent's id would be a name for each agent
    numbers = (publication.number, publication.before)
    return begin_publish(tracing, task, exchange=exchange, routing_key=routing_key, publication=numbers)


def record_spans(tracing: Tracing, effects: Effects) -> None:
    """Make a span for each end of a traced workflow's attempt in a transaction, as a child of its publication's span.

    The span tells of a failure also where the agent died, whose own span died with it.
    """
    traces = {workflow: run.trace for workflow, run in effects.runs if run.trace}
    for moved in effects.transitions if traces else ():
        if moved.state in _ENDS and moved.row.publication and moved.node_key.workflow in traces:
            _record(tracing, moved, traces[moved.node_key.workflow])


def _record(tracing: Tracing, moved: Transition, trace: dict[str, str]) -> None:
    place = read_traceparent(trace.get("traceparent"))
    if place is None or not place.sampled:
        return
    published = publish_id(moved.node_key.task_id, moved.row.publication)
    parent = TraceHeaders(f"00-{place.trace_id:032x}-{published:016x}-01", trace.get("tracestate"))
    ended_ns = None if moved.row.finished_ms is None else moved.row.finished_ms * 1_000_000
    span = begin_record(
        tracing,
        routing.RESULTS,
        parent,
        {
            "coditect.workflow.id": moved.node_key.workflow,
            "coditect.node_id": moved.node_key.node,
            "coditect.state": moved.state.value,
            "coditect.agent.id": moved.row.agent,
        },
        start_ns=ended_ns,
    )
    if span is not None:
        span.end(moved.row.reason or moved.state.value if moved.state in _FAILED else "")
