"""The publisher of one shard: sends the shard's tasks, cancels and events to the broker.

While a shard waits for a rebuild on another broker its publications are held: the earlier ones are published again
afterwards, under numbers of their own. The ledger says which these are by the last number before the rebuild.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from coditect.broker.port import Broker
from coditect.errors import CoditectError, Overloaded, Unroutable
from coditect.model.ids import AgentId
from coditect.model.task import Task
from coditect.telemetry.tracing.port import NO_TRACING, Tracing
from coditect.wire import control_messages, routing
from coditect.wire.addresses.target import pinned_message
from coditect.wire.headers.trace import TraceContext
from coditect.wire.tasks import task_message
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, NodeKey, OutgoingMessage, Publication
from dispatcher.ports import Ports
from dispatcher.shards.publishing.tracing import publish_span, record_spans

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 30.0
TYPES: Mapping[TaskState, str] = MappingProxyType(
    {state: f"node.{state.value}" for state in TaskState}
    | {TaskState.WORKING: "node.started", TaskState.RETRY_WAIT: "node.retrying"}
)
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

    def go_on(self, last: int) -> list[int]:
        """Send the publications kept back with numbers above `last`, drop the others, and return the dropped numbers.
        Both held publications and those on their way up to `last` are dropped. A second call with the same number drops
        nothing more.
        """
        held, self._held = self._held or [], None
        self._last = max(self._last, last)
        held += self._recall([number for number in self._under_way if number <= self._last])
        for publication in held:
            self.send(publication)
        return [publication.number for publication in held if publication.number <= self._last]

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
            message, exchange=routing.SUBMIT, routing_key=routing.key_of(task), timeout_seconds=PUBLISH_SECONDS
        )
    return broker.publish(
        pinned_message(message, task),
        exchange=routing.AGENTS,
        routing_key=routing.next_key(AgentId(agent)),
        timeout_seconds=PUBLISH_SECONDS,
        wait_when_full=False,
    )


async def send_cancel(broker: Broker, node_key: NodeKey, publication: int) -> None:
    """Broadcast a cancel of a node's task to all agents; a failed publish is only logged."""
    message = control_messages.cancel(node_key.task_id, reason="canceled", publication=publication)
    try:
        await broker.publish(message, exchange=routing.BROADCAST, routing_key="", timeout_seconds=PUBLISH_SECONDS)
    except CoditectError as error:
        log.info("A cancel reached no agent", extra={"task_id": node_key.task_id, "reason": str(error)})


async def send_message(broker: Broker, out: OutgoingMessage) -> None:
    """Publish a message to an agent or client; a failed publish is only logged."""
    to = {"exchange": out.exchange, "routing_key": out.routing_key}
    try:
        await broker.publish(out.message, **to, timeout_seconds=PUBLISH_SECONDS, wait_when_full=False)
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
