"""The states of tasks and workflows, with the same names in messages, ledger and tables.

::

    task       blocked → ready → published → working → completed | failed | canceled | rejected | skipped | dead
               (+ retry_wait, awaiting_approval, waiting)
    workflow   accepted → running ⇄ paused → completed | failed | canceled | rejected
                                           → compensating → compensated | compensation_failed
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from coditect.model.message import value
from coditect.workflow.definition import Node, OnFailure


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


# The rules by which the states of a node's predecessors decide whether the node runs, waits or ends.
#
# An edge is met when its predecessor completed, or when its policy is `allow` and the predecessor ended in any way. A
# node may run once as many edges are met as its join needs; it waits while enough edges may still be met; otherwise it
# ends without having run:
#
# ===================================  ======================================================================
# the edge that can never be met       the node
# ===================================  ======================================================================
# `fail`, predecessor failed or dead   failed
# `fail`, predecessor rejected         rejected
# `fail`, predecessor canceled         canceled
# `skip`, or predecessor skipped       skipped
# ===================================  ======================================================================
#
# With several such edges the upper row wins. So a failure travels along the edges until an edge stops it.

_PASSED_ON = {
    TaskState.FAILED: TaskState.FAILED,
    TaskState.DEAD: TaskState.FAILED,
    TaskState.REJECTED: TaskState.REJECTED,
    TaskState.CANCELED: TaskState.CANCELED,
    TaskState.SKIPPED: TaskState.SKIPPED,
}
_WORST_FIRST = (TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELED, TaskState.SKIPPED)


@value
class Tally:
    """The counts of a node's incoming edges (met, undecided), which decide whether the node runs, waits or ends."""

    needed: int
    open: int
    """The number of edges whose predecessor has not ended."""
    met: int = 0
    worst: TaskState | None = None
    """The state in which the node ends if too many edges can never be met; None while all still can."""

    @classmethod
    def of(cls, node: Node) -> Self:
        """Return the counts with which a node starts: all its incoming edges are undecided, and none is met."""
        return cls(node.needed, len(node.after))

    def with_end(self, policy: OnFailure, state: TaskState) -> Tally:
        """Return the counts of met and undecided edges once a predecessor ended, by its state and the edge's policy."""
        if state is TaskState.COMPLETED or policy is OnFailure.ALLOW:
            return Tally(self.needed, self.open - 1, self.met + 1, self.worst)
        lost = TaskState.SKIPPED if policy is OnFailure.SKIP else _PASSED_ON[state]
        return Tally(self.needed, self.open - 1, self.met, _worse(self.worst, lost))

    @property
    def decision(self) -> TaskState | None:
        """The next state of the blocked node: ready, or the state in which the node ends; None while the node waits.

        `ready` is before the condition: where `when` does not hold, the node is skipped instead.
        """
        if self.met >= self.needed:
            return TaskState.READY
        return self.worst if self.met + self.open < self.needed else None


def _worse(state: TaskState | None, other: TaskState) -> TaskState:
    return other if state is None else min(state, other, key=_WORST_FIRST.index)
