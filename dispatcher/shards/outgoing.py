"""The messages of a dispatcher: tasks of nodes, cancels, events."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from types import MappingProxyType

from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.model.ids import AgentId
from coditect.model.task import Task
from coditect.wire import control_messages, routing
from coditect.wire.target import pinned_message
from coditect.wire.tasks import task_message
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, NodeKey
from dispatcher.ports import Ports

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 30.0
TYPES: Mapping[TaskState, str] = MappingProxyType(
    {state: f"node.{state.value}" for state in TaskState}
    | {TaskState.WORKING: "node.started", TaskState.RETRY_WAIT: "node.retrying"}
)
"""The type of the event that a node has come into a state."""


def send_task(broker: Broker, task: Task, agent: str = "") -> Awaitable[None]:
    """Publish a workflow task to any agent or to one agent's own queue; done when the broker has it.

    Raises:
        Unroutable: when the agent's queue is gone, or no queue takes the task.
        Overloaded: when the agent's queue is full; retryable.
        CoditectError: any other error of `Broker.publish`.
    """
    message = task_message(task)
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
    """Send a cancel of the node to every agent; best effort, since a later result would be refused anyway."""
    message = control_messages.cancel(node_key.task_id, reason="canceled", publication=publication)
    try:
        await broker.publish(message, exchange=routing.BROADCAST, routing_key="", timeout_seconds=PUBLISH_SECONDS)
    except CoditectError as error:
        log.info("A cancel reached nobody", extra={"task_id": node_key.task_id, "reason": str(error)})


def tell(ports: Ports, effects: Effects) -> None:
    """Publish the events and the cancels of a transaction."""
    for notice in effects.notices:
        ports.events.emit(notice.type, subject=notice.workflow, **notice.facts)
    for moved in effects.moved:
        type_ = TYPES[moved.state]
        if ports.events.heard(type_, moved.node_key.workflow):
            facts = {"node": moved.node_key.node, "attempt": moved.row.attempt, "agent": moved.row.agent}
            ports.events.emit(type_, subject=moved.node_key.workflow, state=moved.state.value, **facts)
    for node_key, publication in effects.cancels:
        ports.background.start(send_cancel(ports.broker, node_key, publication), name="cancel")
