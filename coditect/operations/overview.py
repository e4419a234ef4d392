"""The fleet at one moment: agents and what they run, queues, dead letters, workflows, breakers, dispatchers.

The parts come from the registry, the broker and the control plane, each by itself: where one does not answer, its part
is missing, a note says so, and the rest is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from coditect.aio.clock import SystemClock
from coditect.broker.management import ManagementUnavailable, QueueRates
from coditect.broker.port import Broker
from coditect.client.coordination import BreakerListing
from coditect.errors import CoditectError, ControlPlaneRequired, RegistryUnavailable, Retryable
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.operations.connections import Connections
from coditect.operations.locate import PingReply, ask_agents
from coditect.operations.status import CapabilityQueues, ClusterStatus, cluster_status, has_dispatcher, list_queues
from coditect.registry.port import Search
from coditect.wire import control_messages
from coditect.workflow.rows import WorkflowRow
from coditect.workflow.states import WorkflowState

MOST_WORKFLOWS = 50
CONTROL_SECONDS = 5.0
"""How long the control plane may take to answer one part of an overview."""


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task that an agent runs now, as the agent itself tells."""

    task_id: str | None
    capability: str
    priority: str
    attempt: int
    workflow: str | None
    """The workflow whose node the task is; None for a direct task."""
    published_at_ms: int | None


@dataclass(frozen=True, slots=True)
class AgentActivity:
    """An agent process with its load, and the tasks that it runs."""

    agent_id: str
    status: AgentStatus
    slots: int
    running: int
    """The slots in use at the last heartbeat."""
    suspended: int
    completed: int
    failed: int
    cpu_percent: float
    resident_bytes: int
    trouble: str
    tasks: tuple[RunningTask, ...] | None
    """The tasks that it runs now, at most 100; None when it did not say in time."""


@dataclass(frozen=True, slots=True)
class FleetOverview:
    """The fleet at one moment; a part that could not be seen is empty or None, and a note says so."""

    at_ms: int
    agents: tuple[AgentActivity, ...]
    queues: tuple[CapabilityQueues, ...]
    """The queues of what living agents offer, with the number of its dead letters."""
    workflows: tuple[WorkflowRow, ...]
    """The running workflows, the latest first, at most as many as were asked for."""
    breakers: tuple[BreakerListing, ...]
    """The breakers that are open."""
    cluster: ClusterStatus | None
    """Dispatchers and shards; None without a control plane."""
    notes: tuple[str, ...]
    """What could not be seen, and why, as sentences."""


async def take_overview(opened: Connections, *, most_workflows: int = MOST_WORKFLOWS) -> FleetOverview:
    """Return an overview of the whole fleet at this moment; read-only, with one question to every agent.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    notes: list[str] = []
    at_ms = SystemClock().now_ms()
    records = await _agents(opened, notes)
    capabilities = {spec.name for record in records for spec in record.registration.capabilities}
    async with opened.broker() as broker:
        answers = await _running(broker, {str(record.agent_id) for record in records}, notes)
        queues = await list_queues(broker, tuple(capabilities), await _rates(opened, notes))
        cluster = await _cluster(broker, notes)
    workflows, breakers = ((), ()) if cluster is None else await _work(opened, most_workflows, notes)
    return FleetOverview(
        at_ms,
        tuple(_activity(record, answers.get(record.agent_id)) for record in records),
        tuple(queues),
        workflows,
        breakers,
        cluster,
        tuple(notes),
    )


async def running_tasks(opened: Connections, notes: list[str]) -> list[tuple[str, RunningTask]]:
    """Return what the agents run now, each task with the id of its agent, at most 100 of an agent; extend the notes.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    records = await _agents(opened, notes)
    async with opened.broker() as broker:
        answers = await _running(broker, {str(record.agent_id) for record in records}, notes)
    return [(agent, task) for agent, answer in answers.items() for task in _tasks(answer.get("tasks")) or ()]


async def _agents(opened: Connections, notes: list[str]) -> tuple[AgentRecord, ...]:
    try:
        async with opened.registry() as registry:
            return await registry.find(Search())
    except RegistryUnavailable:
        notes.append("The registry does not answer: agents and their queues are not seen.")
        return ()


async def _running(broker: Broker, agents: set[str], notes: list[str]) -> Mapping[str, PingReply]:
    """Ask every agent what it runs; return the answers that come in time, keyed by agent id."""
    if not agents:
        return {}
    ping = control_messages.ping(reply_to="", tasks=True)
    replies = await ask_agents(broker, ping, enough=lambda heard: len(heard) >= len(agents))
    found = {str(reply.get("agent_id")): reply for reply in replies}
    if silent := agents - set(found):
        notes.append(f"{len(silent)} of {len(agents)} agents did not say in time what they run.")
    return found


async def _rates(opened: Connections, notes: list[str]) -> Mapping[str, QueueRates]:
    try:
        return await opened.queue_rates() or {}
    except ManagementUnavailable as error:
        notes.append(f"Rates of queues are unknown: {error}")
        return {}


async def _cluster(broker: Broker, notes: list[str]) -> ClusterStatus | None:
    if not await has_dispatcher(broker):
        notes.append("No dispatcher runs: there are no workflows and no breakers of the fleet.")
        return None
    try:
        async with asyncio.timeout(CONTROL_SECONDS):
            return await cluster_status(broker)
    except (ControlPlaneRequired, Retryable, TimeoutError) as error:
        notes.append(f"The control plane is not seen: {_why(error)}.")
        return None


async def _work(
    opened: Connections, most: int, notes: list[str]
) -> tuple[tuple[WorkflowRow, ...], tuple[BreakerListing, ...]]:
    try:
        async with asyncio.timeout(CONTROL_SECONDS), opened.fleet() as client:
            rows = [row async for row in client.workflows.list(state=WorkflowState.RUNNING, limit=most)]
            return tuple(rows), tuple([one async for one in client.breakers.list() if one.state.open])
    except (ControlPlaneRequired, Retryable, TimeoutError) as error:
        notes.append(f"Workflows and breakers are not seen: {_why(error)}.")
        return (), ()


def _why(error: CoditectError | TimeoutError) -> str:
    return error.sentence if isinstance(error, CoditectError) else f"no answer within {CONTROL_SECONDS:.0f} s"


def _activity(record: AgentRecord, answer: PingReply | None) -> AgentActivity:
    load = record.load
    return AgentActivity(
        record.agent_id,
        load.status,
        record.registration.slots,
        load.running,
        load.suspended,
        load.completed,
        load.failed,
        load.cpu_percent,
        load.resident_bytes,
        load.trouble,
        None if answer is None else _tasks(answer.get("tasks")),
    )


def _tasks(told: object) -> tuple[RunningTask, ...] | None:
    """Parse the running tasks in an agent's answer; None from an agent that is too old to name them."""
    if not isinstance(told, list):
        return None
    found = []
    for one in told:
        with suppress(AttributeError, TypeError, ValueError):  # what an agent sends is read with suspicion
            task_id, workflow, published = one.get("task_id"), one.get("workflow"), one.get("published_at_ms")
            found.append(
                RunningTask(
                    None if task_id is None else str(task_id),
                    str(one.get("capability")),
                    str(one.get("priority")),
                    int(one.get("attempt", 1)),
                    None if workflow is None else str(workflow),
                    published if isinstance(published, int) else None,
                )
            )
    return tuple(found)
