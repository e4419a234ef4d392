"""The states of tasks and workflows; messages, ledger and all tables use these names.

::

    task       blocked → ready → published → working → completed | failed | canceled | rejected | skipped | dead
               (+ retry_wait, awaiting_approval)
    workflow   accepted → running ⇄ paused → completed | failed | canceled | rejected
"""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """The state of a node in a workflow."""

    BLOCKED = "blocked"
    """The node waits for its predecessors."""
    READY = "ready"
    """The node may run, and is not published yet."""
    PUBLISHED = "published"
    WORKING = "working"
    RETRY_WAIT = "retry_wait"
    """An attempt failed, and the next attempt's time has not come."""
    AWAITING_APPROVAL = "awaiting_approval"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"
    """Refused before it ran, or an approval that was denied."""
    SKIPPED = "skipped"
    """The node was not wanted: its condition was false, or a predecessor's failure is allowed to skip the node."""
    DEAD = "dead"
    """Given up with a dead letter."""

    @property
    def terminal(self) -> bool:
        """Whether the state is final, but for a redrive."""
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
    """The state of a workflow as a whole."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"

    @property
    def terminal(self) -> bool:
        """Whether the state is final: the workflow has ended."""
        return self not in (WorkflowState.ACCEPTED, WorkflowState.RUNNING, WorkflowState.PAUSED)
