"""Durable tasks of the fleet as A2A tasks: read once, awaited, followed to their end, or listed page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from a2a.server.events.event_queue import Event as A2aEvent
from a2a.types.a2a_pb2 import (
    Artifact,
    ListTasksRequest,
    ListTasksResponse,
    Message,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from a2a.types.a2a_pb2 import TaskState as A2aState
from a2a.utils.constants import DEFAULT_LIST_TASKS_PAGE_SIZE, MAX_LIST_TASKS_PAGE_SIZE
from a2a.utils.errors import TaskNotFoundError
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from coditect.client.client import Client
from coditect.client.handle import Handle, durable_id
from coditect.client.listings import WORKFLOW_PAGES, workflow_conditions
from coditect.errors import InputError, ResultTimeout
from coditect.integrations.a2a.messages import parts_of, printable
from coditect.model.duration import Duration
from coditect.model.message import Event
from coditect.model.result import Outcome
from coditect.wire.json import loads
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.rows import WorkflowRow
from coditect.workflow.states import TaskState

CONTEXT = "a2a.context"
"""The label of a durable task's workflow that has the task's context."""
A2A_KIND: Mapping[str, str] = {"a2a": "task"}
"""The label of the workflows of all tasks that A2A clients sent."""
RESULT_ARTIFACT = "result"
"""The id of the artifact that has a task's value."""
STATES: Mapping[TaskState, A2aState] = {
    TaskState.BLOCKED: A2aState.TASK_STATE_SUBMITTED,
    TaskState.READY: A2aState.TASK_STATE_SUBMITTED,
    TaskState.PUBLISHED: A2aState.TASK_STATE_SUBMITTED,
    TaskState.WAITING: A2aState.TASK_STATE_SUBMITTED,
    TaskState.WORKING: A2aState.TASK_STATE_WORKING,
    TaskState.RETRY_WAIT: A2aState.TASK_STATE_WORKING,
    TaskState.AWAITING_APPROVAL: A2aState.TASK_STATE_INPUT_REQUIRED,
    TaskState.COMPLETED: A2aState.TASK_STATE_COMPLETED,
    TaskState.FAILED: A2aState.TASK_STATE_FAILED,
    TaskState.DEAD: A2aState.TASK_STATE_FAILED,
    TaskState.CANCELED: A2aState.TASK_STATE_CANCELED,
    TaskState.SKIPPED: A2aState.TASK_STATE_CANCELED,
    TaskState.REJECTED: A2aState.TASK_STATE_REJECTED,
}
"""The A2A state of a task in each state of the control plane."""
ENDED = frozenset(STATES[state] for state in TaskState if state.terminal)
ASKING = A2aState.TASK_STATE_INPUT_REQUIRED


def state_of(row: WorkflowRow) -> TaskState:
    """Return the state of the only node in a durable task's workflow."""
    return next(iter(row.counts), TaskState.BLOCKED)


def task_of(row: WorkflowRow, *, outcome: Outcome | None = None, asked: str = "") -> Task:
    """Return the A2A task of a durable task's workflow; `asked` is the question of the approval that it waits for."""
    task_id, context = durable_id(row.workflow), row.labels.get(CONTEXT, row.workflow)
    status = TaskStatus(state=STATES[state_of(row)])
    at_ms = row.finished_at_ms or row.accepted_at_ms
    if at_ms is not None:
        status.timestamp.FromDatetime(datetime.fromtimestamp(at_ms / 1000, UTC))
    text = asked or (_failure(outcome) if outcome is not None else "")
    if text:
        status.message.CopyFrom(agent_message(text, task_id=task_id, context=context, part="status"))
    task = Task(id=task_id, context_id=context, status=status, metadata=ParseDict({"skillId": row.name}, Struct()))
    if outcome is not None and outcome.failure is None:
        task.artifacts.append(
            Artifact(artifact_id=RESULT_ARTIFACT, name=RESULT_ARTIFACT, parts=parts_of(loads(outcome.body)))
        )
    return task


def agent_message(text: str, *, task_id: str, context: str, part: str) -> Message:
    """Return an A2A message from the fleet about a task; its id is the task's id, a slash, and the text `part`."""
    return Message(
        message_id=f"{task_id}/{part}",
        task_id=task_id,
        context_id=context,
        role=Role.ROLE_AGENT,
        parts=parts_of(printable(text)),
    )


def _failure(outcome: Outcome) -> str:
    """Return why a task ended without a value and, if known, what to do about it; empty for a task with a value."""
    failure = outcome.failure
    if failure is None:
        return ""
    text = failure.message or failure.reason
    return f"{text[:4_000]} (to do: {failure.fix})" if failure.fix else text[:4_000]


WORKFLOW_TIMEOUT = "3650d"
SHOWN_EVENTS = frozenset({"task.started", "task.progress"})
"""The events of a task that a stream shows."""
HOW_TO_ANSWER = 'an approver answers with the text "grant" or "deny" in a message to this task'


def handle_of(client: Client, task_id: str) -> Handle:
    """Return the handle of a durable task by its id; sends no request.

    Raises:
        TaskNotFoundError: when the id is not that of a durable task.
    """
    try:
        return client.tasks.get(task_id)
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
        ended = asyncio.ensure_future(settled(handle, timeout=WORKFLOW_TIMEOUT))
        try:
            while (event := await events.next_before(ended)) is not None:
                if event.type in SHOWN_EVENTS:
                    yield _working(task, event)
            task = await ended
            for artifact in task.artifacts:
                yield TaskArtifactUpdateEvent(
                    task_id=task.id, context_id=task.context_id, artifact=artifact, last_chunk=True
                )
            yield TaskStatusUpdateEvent(task_id=task.id, context_id=task.context_id, status=task.status)
        finally:
            ended.cancel()
            await asyncio.wait({ended})


def is_settled(task: Task) -> bool:
    """Tell whether an A2A task has ended or waits for an approval."""
    return task.status.state in ENDED or task.status.state == ASKING


def _working(task: Task, event: Event) -> TaskStatusUpdateEvent:
    share, note = event.data.get("share"), str(event.data.get("note") or "")
    message = agent_message(note, task_id=task.id, context=task.context_id, part=event.id) if note else None
    status = TaskStatus(state=A2aState.TASK_STATE_WORKING, message=message)
    metadata = {"share": share} if isinstance(share, int | float) else {}
    return TaskStatusUpdateEvent(
        task_id=task.id, context_id=task.context_id, status=status, metadata=ParseDict(metadata, Struct())
    )


def _unknown(task_id: str) -> TaskNotFoundError:
    fix = "ask with the id of the answer to SendMessage"
    return TaskNotFoundError(f"The fleet keeps no task {task_id[:200]}; {fix}", data={"fix": fix})


async def list_tasks(client: Client, request: ListTasksRequest) -> ListTasksResponse:
    """Return a page of the tasks that A2A clients sent and that fit the request's conditions, the latest sent first.

    A page may be short, or empty, before the last one: the state is compared after a page is read. The total is that of
    the page, since the control plane does not count. Once the tasks of a page have 1 MiB, the others have no values.

    Raises:
        InputError: when the page's size or token is wrong.
    """
    size = request.page_size if request.HasField("page_size") else DEFAULT_LIST_TASKS_PAGE_SIZE
    if not 1 <= size <= MAX_LIST_TASKS_PAGE_SIZE:
        raise InputError("A page has 1 to 100 tasks", page_size=size, fix="pageSize: 50")
    labels = {**A2A_KIND} | ({CONTEXT: request.context_id} if request.context_id else {})
    since = None
    if request.HasField("status_timestamp_after"):
        since = request.status_timestamp_after.ToMilliseconds()
    page = await client.page(
        WORKFLOW_PAGES, workflow_conditions(labels=labels), cursor=request.page_token or None, limit=size
    )
    rows = [row for row in page.items if _fits(row, request.status, since)]
    tasks, room = list[Task](), MAX_BODY_BYTES if request.include_artifacts else 0
    for row in rows:
        tasks.append(await whole_task(client.tasks.get(durable_id(row.workflow)), row) if room > 0 else task_of(row))
        room -= tasks[-1].ByteSize()
    return ListTasksResponse(tasks=tasks, next_page_token=page.next or "", page_size=size, total_size=len(tasks))


def _fits(row: WorkflowRow, state: A2aState, since_ms: int | None) -> bool:
    if state != A2aState.TASK_STATE_UNSPECIFIED and STATES[state_of(row)] != state:
        return False
    changed_ms = row.finished_at_ms or row.accepted_at_ms or 0
    return since_ms is None or changed_ms >= since_ms
