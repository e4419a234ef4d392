"""The publisher of one shard: sends the shard's tasks, cancels and events to the broker.

While a shard waits for a rebuild on another broker its publications are held: the earlier ones are published again
afterwards, under numbers of their own. The ledger says which these are by the last number before the rebuild.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from coditect.broker.port import Broker
from coditect.errors import CoditectError, Overloaded, Unroutable
from coditect.model.ids import AgentId
from coditect.model.task import Task
from coditect.telemetry.tracing import (
    NO_TRACING,
    Span,
    TraceHeaders,
    Tracing,
    begin_publish,
    begin_record,
    begin_step,
    publish_id,
    read_traceparent,
)
from coditect.wire import control_messages, routing
from coditect.wire.headers import NODE_ID, WORKFLOW_ID, TraceContext, workflow_members
from coditect.wire.routing import pinned_message
from coditect.wire.tasks import task_message
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, EndedWait, NodeKey, OutgoingMessage, Publication, Transition
from dispatcher.ledger.outbox import Numbers
from dispatcher.ports import Ports
from dispatcher.shards.in_flight import InFlight

log = logging.getLogger(__name__)

TASK_PUBLISH_SECONDS = 30.0
TYPES: Mapping[TaskState, str] = {
    **{state: f"node.{state.value}" for state in TaskState},
    TaskState.WORKING: "node.started",
    TaskState.RETRY_WAIT: "node.retrying",
}
"""The type of the event that is published when a node enters a state, by state."""
Sent = Callable[[Publication, BaseException | None], None]


class ShardPublisher:
    """The publisher of a shard's tasks, which calls `sent` with each task's error, or with None after the confirm.

    It does not call `sent` for a try that is canceled or goes to another queue.
    """

    def __init__(self, broker: Broker, sent: Sent, tracing: Tracing = NO_TRACING) -> None:
        self._broker, self._tracing = broker, tracing
        self._sent = sent
        self._under_way: dict[int, tuple[Publication, asyncio.Future[None]]] = {}
        self._held: list[Publication] | None = None
        self._last = 0

    def send(self, publication: Publication) -> None:
        """Publish a node's task, or keep it back during a hold; drop it if the last rebuild publishes it again."""
        number = publication.number
        if self._held is not None:
            self._held.append(publication)
        elif number > self._last:
            span = publish_span(self._tracing, publication) if self._tracing.active else None
            sending = asyncio.ensure_future(send_task(self._broker, publication.task, publication.agent, trace=span))
            self._under_way[number] = publication, sending
            sending.add_done_callback(lambda done: self._done(publication, done))
            if span is not None and span.sampled:
                sending.add_done_callback(span.end_with)

    def _done(self, publication: Publication, done: asyncio.Future[None]) -> None:
        _, sending = self._under_way.get(publication.number, (None, None))
        if sending is done:  # not one that took the place of what was recalled
            del self._under_way[publication.number]
        if done.cancelled():
            return
        error = done.exception()
        if sending is done and publication.agent and isinstance(error, (Unroutable, Overloaded)):
            self.send(_for_anybody(publication))
        else:
            self._sent(publication, error)

    async def settled(self, within_seconds: float) -> None:
        """Wait until the broker has answered every publish of the shard, for at most `within_seconds`."""
        if self._under_way:
            await asyncio.wait([sending for _, sending in self._under_way.values()], timeout=within_seconds)

    def hold(self, *, recall: bool) -> None:
        """Keep all publications back until `go_on`; with `recall` also take back those that are not yet confirmed."""
        if self._held is None:
            self._held = []
        if recall:
            self._held += self._recall(tuple(self._under_way))

    def go_on(self, last: int) -> None:
        """Send the publications kept back with numbers above `last`; drop the others, those on their way among them."""
        held, self._held = self._held or [], None
        self._last = max(self._last, last)
        held += self._recall([number for number in self._under_way if number <= self._last])
        for publication in held:
            self.send(publication)

    def _recall(self, numbers: Iterable[int]) -> list[Publication]:
        recalled = []
        for number in numbers:
            publication, sending = self._under_way.pop(number)
            sending.cancel()
            recalled.append(publication)
        return recalled


def _for_anybody(publication: Publication) -> Publication:
    """Return a copy of a publication for any agent, after one agent's queue of follow-up tasks refused the task.

    Agents must ask for a claim before they run it, since an earlier try may have reached the agent all the same.
    """
    return replace(publication, agent="", task=replace(publication.task, published_at_ms=None))


def send_task(broker: Broker, task: Task, agent: str = "", *, trace: TraceContext | None = None) -> Awaitable[None]:
    """Publish a task to its capability's queue or to one agent's queue of follow-up tasks; await the confirm.

    Raises:
        Unroutable: when the agent's queue is gone, or no queue takes the task.
        Overloaded: when the agent's queue is full; retryable.
        CoditectError: any other error of `Broker.publish`.
    """
    message = task_message(task, trace=trace)
    if not agent:
        return broker.publish(
            message, exchange=routing.SUBMIT, routing_key=routing.key_of(task), timeout_seconds=TASK_PUBLISH_SECONDS
        )
    return broker.publish(
        pinned_message(message, task),
        exchange=routing.AGENTS,
        routing_key=routing.next_key(AgentId(agent)),
        timeout_seconds=TASK_PUBLISH_SECONDS,
        wait_when_full=False,
    )


async def send_cancel(broker: Broker, node_key: NodeKey, publication: int) -> None:
    """Broadcast a cancel of a node's task to all agents; a failed publish is only logged."""
    message = control_messages.cancel(node_key.task_id, reason="canceled", publication=publication)
    try:
        await broker.publish(message, exchange=routing.BROADCAST, routing_key="", timeout_seconds=TASK_PUBLISH_SECONDS)
    except CoditectError as error:
        log.info("A cancel reached no agent", extra={"task_id": node_key.task_id, "reason": str(error)})


async def send_message(broker: Broker, out: OutgoingMessage) -> None:
    """Publish a message to an agent or client; a failed publish is only logged."""
    to = {"exchange": out.exchange, "routing_key": out.routing_key}
    try:
        await broker.publish(out.message, **to, timeout_seconds=TASK_PUBLISH_SECONDS, wait_when_full=False)
    except CoditectError as error:
        log.info("A message reached no receiver", extra={**to, "reason": str(error)})


def tell(ports: Ports, effects: Effects) -> None:
    """Publish a committed transaction's events, cancels and messages in the background; record its tracing spans."""
    for notice in effects.notices:
        ports.events.emit(notice.type, subject=notice.workflow, **notice.facts)
    for moved in effects.transitions:
        facts = {"node": moved.node_key.node, "attempt": moved.row.attempt, "agent": moved.row.agent}
        ports.events.emit(TYPES[moved.state], subject=moved.node_key.workflow, state=moved.state.value, **facts)
    if ports.tracing.active:
        record_spans(ports.tracing, effects)
    for node_key, publication in effects.cancels:
        ports.background.start(send_cancel(ports.broker, node_key, publication), name="cancel")
    for out in effects.messages:
        ports.background.start(send_message(ports.broker, out), name="message")


class Confirms:
    """The confirms of one shard's publications: the next batch records the number up to which the broker has all.

    A batch only for that would hold up the next result by a whole commit, so there is one only when no other batch came
    for a while: then `are_overdue` holds, and `on_overdue` is called.
    """

    def __init__(self, in_flight: InFlight, on_overdue: Callable[[], None]) -> None:
        self._in_flight = in_flight
        self._open: OrderedDict[int, NodeKey] = OrderedDict()
        """The publications without a confirm by number, in the order of the numbers."""
        self._last = self._recorded = 0
        self._may_record = True
        self._on_overdue = on_overdue
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.are_overdue = False
        """Whether a number has waited for a batch for so long that it gets one of its own."""

    def take_over(self, numbers: Numbers, unconfirmed: Mapping[int, NodeKey], *, complete: bool) -> None:
        """Start from the numbers in the ledger, and from the publications that may be without a confirm.

        If these are not all, since only a newer dispatcher can read some nodes, no confirm is recorded.
        """
        self._open = OrderedDict(sorted({**self._open, **unconfirmed}.items()))
        self._last, self._recorded, self._may_record = numbers.last, numbers.confirmed, complete

    def add(self, publications: Iterable[Publication]) -> None:
        """Note publications that are about to be sent; their numbers grow."""
        for publication in publications:
            self._open[publication.number] = publication.node_key
            self._last = publication.number

    def note(self, number: int) -> None:
        """Note that the broker has confirmed a publication."""
        self._open.pop(number, None)

    @property
    def unrecorded(self) -> int:
        """The number up to which all publications are confirmed, if the ledger does not have it; or else 0."""
        confirmed = self._last
        while self._open:
            number, node_key = next(iter(self._open.items()))
            flight = self._in_flight.get(node_key)
            if flight is not None and flight.publication == number and not flight.agent:
                confirmed = number - 1
                break
            del self._open[number]  # its node is begun, has ended, or is published again: nobody needs its confirm
        return confirmed if confirmed > self._recorded and self._may_record and not self._closed else 0

    def take(self) -> int:
        """Return `unrecorded` for a batch that begins now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.are_overdue = False
        return self.unrecorded

    def record(self, number: int) -> None:
        """Note that a batch has recorded a number."""
        self._recorded = max(self._recorded, number)

    def wait(self, seconds: float) -> None:
        """Let a number wait so long for a batch, if there is one to record."""
        if self._timer is None and not self._closed and self.unrecorded:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def close(self) -> None:
        """Record nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        self.are_overdue = True
        self._on_overdue()


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

    The span tells of a failure also where the agent died, whose own span died with it. A wait for an approval, a signal
    or an instant becomes a span when it ends, beside the publications of the workflow's tasks.
    """
    traces = {workflow: run.trace for workflow, run in effects.runs if run.trace}
    for wait in effects.waits if traces else ():
        if wait.node_key.workflow in traces:
            _record_wait(tracing, wait, traces[wait.node_key.workflow])
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
    named = _named(moved.node_key, trace)
    facts = {"coditect.state": moved.state.value, "coditect.agent.id": moved.row.agent}
    span = begin_record(tracing, routing.RESULTS, parent, named | facts, start_ns=ended_ns)
    if span is not None:
        span.end(moved.row.reason or moved.state.value if moved.state in _FAILED else "")


def _record_wait(tracing: Tracing, wait: EndedWait, trace: dict[str, str]) -> None:
    facts = {f"coditect.{wait.kind}.{name}": text for name, text in wait.facts.items() if text}
    attributes, start_ns = _named(wait.node_key, trace) | facts, wait.since_ms * 1_000_000
    span = begin_step(tracing, f"await {wait.kind}", TraceHeaders(**trace), attributes, start_ns=start_ns)
    if span is not None:
        span.end()


def _named(node_key: NodeKey, trace: dict[str, str]) -> dict[str, str]:
    """Return the attributes that name a workflow and its node; the workflow's name travels with its trace."""
    return workflow_members(trace.get("baggage")) | {WORKFLOW_ID: node_key.workflow, NODE_ID: node_key.node}
