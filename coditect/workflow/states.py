"""The states of tasks and workflows, with the same names in messages, ledger and tables.

::

    task       blocked → ready → published → working → completed | failed | canceled | rejected | skipped | dead
               (+ retry_wait, awaiting_approval, waiting)
    workflow   accepted → running ⇄ paused → completed | failed | canceled | rejected
                                           → compensating → compensated | compensation_failed
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
    """An attempt failed, and the node waits for the time of its next attempt."""
    AWAITING_APPROVAL = "awaiting_approval"
    WAITING = "waiting"
    """The node waits for an instant, or for a signal."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"
    """The task was refused before it ran, or the approval was denied."""
    SKIPPED = "skipped"
    """The node did not run: its condition was false, or its edge skips it when a predecessor fails."""
    DEAD = "dead"
    """The node was given up, and a dead letter kept."""

    terminal: bool
    """Whether the node has ended; only a redrive changes the state then."""

    def __init__(self, value: str) -> None:
        self.terminal = value in ("completed", "failed", "canceled", "rejected", "skipped", "dead")


class WorkflowState(StrEnum):
    """The state of a workflow as a whole."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"
    COMPENSATING = "compensating"
    """The workflow did not complete, and its completed nodes are being undone, the last one first."""
    COMPENSATED = "compensated"
    """The workflow did not complete, and every completed node that declares a compensation was undone."""
    COMPENSATION_FAILED = "compensation_failed"
    """A compensation did not complete: the nodes that completed before the compensated node are not undone."""

    terminal: bool
    """Whether the workflow has ended."""

    def __init__(self, value: str) -> None:
        self.terminal = value not in ("accepted", "running", "paused", "compensating")
