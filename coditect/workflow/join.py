"""The rules by which the states of a node's predecessors decide whether the node runs, waits or ends.

An edge is met when its predecessor completed, or when its policy is `allow` and the predecessor ended in any way. A
node may run once as many edges are met as its join needs; it waits while enough edges may still be met; otherwise it
ends without having run:

===================================  ======================================================================
the edge that can never be met       the node
===================================  ======================================================================
`fail`, predecessor failed or dead   failed
`fail`, predecessor rejected         rejected
`fail`, predecessor canceled         canceled
`skip`, or predecessor skipped       skipped
===================================  ======================================================================

With several such edges the upper row wins. So a failure travels along the edges until an edge stops it.
"""

from __future__ import annotations

from typing import Self

from coditect.model.value import value
from coditect.workflow.definition import Node, OnFailure
from coditect.workflow.states import TaskState

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


def _worse(one: TaskState | None, other: TaskState) -> TaskState:
    return other if one is None else min(one, other, key=_WORST_FIRST.index)
