"""Use cases for tasks: list tasks, show a durable one, cancel one.

A call to the control plane raises ControlPlaneRequired when no dispatcher answers; every call raises BrokerUnavailable,
which is retryable, when the broker does not answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from coditect.client.client import Client
from coditect.client.handle import DURABLE_NODE, durable_id, workflow_of
from coditect.errors import NotFound
from coditect.model.result import Outcome
from coditect.operations.connections import Connections
from coditect.operations.locate import TaskPlace, find_task, task_verdict
from coditect.operations.overview import running_tasks
from coditect.operations.status import has_dispatcher
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.rows import NodeRow, WorkflowRow
from coditect.workflow.states import TaskState

SEARCHED_WORKFLOWS = 1_000
"""The number of latest workflows among which `list_tasks` looks for durable tasks."""
NODES_AT_ONCE = 20
"""The number of workflows whose nodes `list_tasks` asks for at once."""

_CANCELABLE = (TaskPlace.WORKING, TaskPlace.WAITING, TaskPlace.RETRYING)


@dataclass(frozen=True, slots=True)
class DurableTask:
    """The control plane's record of a durable task: state, attempts and outcome."""

    row: NodeRow
    attempts: list[AttemptRow]
    outcome: Outcome | None
    """The task's outcome; None while the task has not ended."""


@dataclass(frozen=True, slots=True)
class ListedTask:
    """A task in a listing: a durable one, or a direct one that an agent runs."""

    task_id: str
    capability: str
    priority: str
    state: TaskState
    durable: bool
    agent: str
    """The agent that runs the task, or ran it last; empty before its first attempt."""
    attempt: int
    at_ms: int | None
    """When the control plane accepted a durable task, or when a direct one was published."""


@dataclass(frozen=True, slots=True)
class TaskListing:
    """Tasks, the latest first, and sentences about what could not be seen."""

    tasks: tuple[ListedTask, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CancelReport:
    """The result of a request to cancel a task: whether control plane or agents got the request, and any error."""

    durable: bool
    """Whether the control plane accepted the request; False when it went to every agent."""
    error: NotFound | None
    """The error that no such direct task waits or runs, as far as agents and queues tell; else None."""


async def list_tasks(opened: Connections, *, limit: int) -> TaskListing:
    """Return at most `limit` tasks, the latest first: durable ones, and the direct ones that agents run now.

    Durable tasks are looked for among the latest 1,000 workflows. Direct tasks have no record: one that waits in a
    queue, or has ended, is not listed.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    notes: list[str] = []
    found = list[ListedTask]()
    for agent, task in await running_tasks(opened, notes):
        if task.task_id is not None and task.workflow is None:
            facts = (task.task_id, task.capability, task.priority, TaskState.WORKING)
            found.append(ListedTask(*facts, False, agent, task.attempt, task.published_at_ms))
    found += await _durable_tasks(opened, limit, notes)
    found.sort(key=lambda task: task.at_ms or 0, reverse=True)
    return TaskListing(tuple(found[:limit]), tuple(notes))


async def _durable_tasks(opened: Connections, limit: int, notes: list[str]) -> list[ListedTask]:
    async with opened.broker() as broker:
        served = await has_dispatcher(broker)
    if not served:
        notes.append("No dispatcher runs: durable tasks are not seen.")
        return []
    async with opened.fleet() as client:
        rows = [row async for row in client.workflows.list(limit=SEARCHED_WORKFLOWS)]
        lone = [row for row in rows if row.total == 1 and not row.parent]
        found: list[ListedTask] = []
        for start in range(0, len(lone), NODES_AT_ONCE):
            batch = lone[start : start + NODES_AT_ONCE]
            found += filter(None, await asyncio.gather(*(_durable_task(client, row) for row in batch)))
            if len(found) >= limit:
                break
        return found


async def _durable_task(client: Client, row: WorkflowRow) -> ListedTask | None:
    """Return the durable task that a workflow of one node stands for; None for another workflow of one node."""
    with suppress(NotFound):  # the workflow was removed meanwhile
        async for node in client.workflows.get(row.workflow).nodes():
            if node.name == DURABLE_NODE and node.capability == row.name:
                task_id, facts = durable_id(row.workflow), (node.capability, node.priority, node.state)
                return ListedTask(task_id, *facts, True, node.agent, node.attempt, row.accepted_at_ms)
    return None


async def get_task(opened: Connections, task_id: str) -> DurableTask:
    """Return a durable task with all its attempts.

    Raises:
        InputError: when the id is not that of a durable task.
        NotFound: when the control plane has no such task.
    """
    async with opened.fleet() as client:
        handle = client.tasks.get(task_id)
        row = await handle.row()
        attempts = [one async for one in handle.run.attempts()]
        return DurableTask(row, attempts, await handle.outcome() if row.state.terminal else None)


async def cancel_task(opened: Connections, task_id: str) -> CancelReport:
    """Cancel a durable task through the control plane, or a direct task by a message to all agents, at best effort.

    Whether a direct task waits or runs is looked up before, by `find_task`; the request is sent in either case.
    """
    durable = is_durable(task_id)
    seen = None if durable else await find_task(opened, task_id)
    async with opened.fleet() as client:
        await client.tasks.cancel(task_id)
    if seen is None or (seen.best is not None and seen.best.place in _CANCELABLE):
        return CancelReport(durable, None)
    told = task_verdict(task_id, seen, None, named=True)
    error = NotFound("No such task waits or runs", task_id=task_id, seen=told.sentence, fix=told.fix)
    return CancelReport(durable, error)


def is_durable(task_id: str) -> bool:
    """Tell whether a task id is that of a durable task."""
    return workflow_of(task_id) is not None
