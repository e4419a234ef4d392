"""The states of tasks and workflows. Their names are on the wire, in the ledger and in every table.

::

    task       blocked → ready → published → working → completed | failed | canceled | rejected | skipped | dead
               (+ retry_wait, awaiting_approval)
    workflow   accepted → running ⇄ paused → completed | failed | canceled | rejected
"""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """Where a node of a workflow is."""

    BLOCKED = "blocked"
    """It waits for its predecessors."""
    READY = "ready"
    """It may run; nobody was asked yet."""
    PUBLISHED = "published"
    WORKING = "working"
    RETRY_WAIT = "retry_wait"
    """An attempt failed, the next one's time has not come."""
    AWAITING_APPROVAL = "awaiting_approval"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"
    """Refused before it ran, or an approval that was denied."""
    SKIPPED = "skipped"
    """It was not wanted: its condition was false, or what it waited for did not happen and that is allowed."""
    DEAD = "dead"
    """Given up with a dead letter."""

    @property
    def terminal(self) -> bool:
        """Whether nothing follows but a redrive."""
        return self in _ENDS


_ENDS = frozenset(
    {
        TaskState.COMPLETED,
        TaskState.FAILED,
        TaskState.CANCELED,
        TaskState.REJECTED,
        TaskState.SKIPPED,
        TaskState.DEAD,
    }
)


class WorkflowState(StrEnum):
    """Where a workflow is."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self not in (WorkflowState.ACCEPTED, WorkflowState.RUNNING, WorkflowState.PAUSED)
