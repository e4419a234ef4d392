"""A durable task of the fleet as an A2A task: its state, its value as an artifact, its failure as a message."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType

from a2a.types.a2a_pb2 import Artifact, Message, Role, Task, TaskStatus
from a2a.types.a2a_pb2 import TaskState as A2aState
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from coditect.client.durable import durable_id
from coditect.integrations.a2a.parts import parts_of, printable
from coditect.model.result import Outcome
from coditect.wire.json import loads
from coditect.workflow.rows import WorkflowRow
from coditect.workflow.states import TaskState

CONTEXT = "a2a.context"
"""The label of a durable task's workflow that has the task's context."""
KIND: Mapping[str, str] = MappingProxyType({"a2a": "task"})
"""The label of the workflows of all tasks that A2A clients sent."""
RESULT = "result"
"""The id of the artifact that has a task's value."""
STATES: Mapping[TaskState, A2aState] = MappingProxyType(
    {
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
)
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
    told = asked or (_failure(outcome) if outcome is not None else "")
    if told:
        status.message.CopyFrom(agent_message(told, task_id=task_id, context=context, part="status"))
    task = Task(id=task_id, context_id=context, status=status, metadata=ParseDict({"skillId": row.name}, Struct()))
    if outcome is not None and outcome.failure is None:
        task.artifacts.append(Artifact(artifact_id=RESULT, name=RESULT, parts=parts_of(loads(outcome.body))))
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
    told = failure.message or failure.reason
    return f"{told[:4_000]} (to do: {failure.fix})" if failure.fix else told[:4_000]
