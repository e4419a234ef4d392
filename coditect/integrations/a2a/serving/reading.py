"""A2A tasks as the control plane has them: read once, awaited, or followed to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from a2a.server.events.event_queue import Event as A2aEvent
from a2a.types.a2a_pb2 import Task, TaskArtifactUpdateEvent, TaskStatus, TaskStatusUpdateEvent
from a2a.types.a2a_pb2 import TaskState as A2aState
from a2a.utils.errors import TaskNotFoundError
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.errors import InputError, ResultTimeout
from coditect.integrations.a2a.serving.tasks import ASKING, ENDED, agent_message, state_of, task_of
from coditect.model.duration import Duration
from coditect.model.event import Event
from coditect.workflow.rows import WorkflowRow
from coditect.workflow.states import TaskState

LONGEST = "3650d"
SHOWN = frozenset({"task.started", "task.progress"})
"""The events of a task that a stream shows."""
HOW_TO_ANSWER = 'an approver answers with the text "grant" or "deny" in a message to this task'


def handle_of(client: Client, task_id: str) -> Handle:
    """Return the handle of a durable task by its id; sends no request.

    Raises:
        TaskNotFoundError: when the id is not that of a durable task.
    """
    try:
        return client.task(task_id)
    except InputError as error:
        raise _unknown(task_id) from error


async def read_task(handle: Handle) -> Task:
    """Return the A2A task of a handle as it is now, with its value or failure once it has ended."""
    return await whole_task(handle, await handle.run.overview())


async def whole_task(handle: Handle, row: WorkflowRow) -> Task:
    """Return the A2A task of a workflow's row, with the value, failure or approval question that the row lacks.

    Raises:
        TaskNotFoundError: when the workflow has other nodes than a task.
    """
    if row.total != 1:
        raise _unknown(handle.task_id)
    state = state_of(row)
    if state is TaskState.AWAITING_APPROVAL:
        question = (await handle.row()).question or "May this task run?"
        return task_of(row, asked=f"{question} ({HOW_TO_ANSWER})")
    return task_of(row, outcome=await handle.outcome() if state.terminal else None)


async def settled(handle: Handle, *, timeout: Duration) -> Task:
    """Return a task at once if it waits for an approval, else when it has ended, or as it is after the timeout.

    Whether a task needs an approval is known when it is accepted.
    """
    task = await read_task(handle)
    if is_settled(task):
        return task
    with suppress(ResultTimeout):
        await handle.run.wait(timeout=timeout)
    return await read_task(handle)


async def follow(client: Client, handle: Handle) -> AsyncGenerator[A2aEvent]:
    """Yield a task's A2A events: the task now, its start and progress, then its value and end, or its open approval."""
    async with client.events("task.*", of=handle.task_id) as events:
        task = await read_task(handle)
        yield task
        if is_settled(task):
            return
        ended = asyncio.ensure_future(settled(handle, timeout=LONGEST))
        try:
            while (event := await events.next_before(ended)) is not None:
                if event.type in SHOWN:
                    yield _working(task, event)
            for update in _updates(await ended):
                yield update
        finally:
            ended.cancel()
            await asyncio.wait({ended})


def is_settled(task: Task) -> bool:
    """Tell whether an A2A task has ended or waits for an approval."""
    return task.status.state in ENDED or task.status.state == ASKING


def _updates(task: Task) -> list[A2aEvent]:
    values: list[A2aEvent] = [
        TaskArtifactUpdateEvent(task_id=task.id, context_id=task.context_id, artifact=one, last_chunk=True)
        for one in task.artifacts
    ]
    return [*values, TaskStatusUpdateEvent(task_id=task.id, context_id=task.context_id, status=task.status)]


def _working(task: Task, event: Event) -> TaskStatusUpdateEvent:
    share, note = event.data.get("share"), str(event.data.get("note") or "")
    message = agent_message(note, task_id=task.id, context=task.context_id, part=event.id) if note else None
    status = TaskStatus(state=A2aState.TASK_STATE_WORKING, message=message)
    told = {"share": share} if isinstance(share, int | float) else {}
    return TaskStatusUpdateEvent(
        task_id=task.id, context_id=task.context_id, status=status, metadata=ParseDict(told, Struct())
    )


def _unknown(task_id: str) -> TaskNotFoundError:
    fix = "ask with the id of the answer to SendMessage"
    return TaskNotFoundError(f"The fleet keeps no task {task_id[:200]}; {fix}", data={"fix": fix})
