"""The document of a task: its state, and once it has ended its value or failure."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

from coditect.model.result import Outcome, Status
from coditect.operations.tasks import DurableTask
from coditect.wire.json import loads
from coditect.workflow.rows import AttemptRow

SUBMITTED = "submitted"
"""The status of a direct task whose result has not come."""


@dataclass(frozen=True, slots=True)
class TaskDocument:
    """A task as a document: its status, and its value or failure once it has ended."""

    task_id: str
    status: str
    """`submitted` for a direct task under way, a node's state for a durable one, or how the task ended."""
    value: Any = None
    """The value of a completed task; None for a value of bytes."""
    value_base64: str | None = None
    """The value of a completed task whose handler returns bytes, in Base64."""
    failure: dict[str, Any] | None = None
    """Why the task has no value: reason, type, message, traceback, retryable and fix."""
    agent: str | None = None
    attempt: int | None = None
    started_at_ms: int | None = None
    """When the handler began, in milliseconds since the epoch."""
    finished_at_ms: int | None = None
    attempts: tuple[AttemptRow, ...] = ()
    """Every attempt of a durable task."""

    @classmethod
    def of(cls, task_id: str, outcome: Outcome, attempts: tuple[AttemptRow, ...] = ()) -> TaskDocument:
        """Convert the outcome of an ended task, and the given attempts, if any, to plain values for answers in JSON."""
        completed, binary = outcome.status is Status.COMPLETED, outcome.binary
        return cls(
            task_id,
            outcome.status.value,
            value=loads(outcome.body) if completed and not binary else None,
            value_base64=b64encode(outcome.body).decode() if binary else None,
            failure=outcome.failure.as_json() if outcome.failure else None,
            agent=outcome.agent_id,
            attempt=outcome.attempt,
            started_at_ms=outcome.started_at_ms,
            finished_at_ms=outcome.finished_at_ms,
            attempts=attempts,
        )

    @classmethod
    def of_durable(cls, task_id: str, task: DurableTask) -> TaskDocument:
        """Convert a durable task, ended or not, to plain values for answers in JSON, with all its attempts."""
        attempts, row = tuple(task.attempts), task.row
        if task.outcome is not None:
            return cls.of(task_id, task.outcome, attempts)
        return cls(
            task_id,
            row.state.value,
            agent=row.agent or None,
            attempt=row.attempt,
            started_at_ms=row.started_at_ms,
            attempts=attempts,
        )
