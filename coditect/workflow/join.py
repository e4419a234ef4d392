"""The rules that follow from node states: which nodes may run, which never will, and how the workflow ends.

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

With several such edges the upper row wins. So a failure travels along the edges until an edge stops it, and a workflow
ends as its last nodes do: the nodes without dependents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from coditect.model.value import value
from coditect.workflow.definition import Node, OnFailure
from coditect.workflow.graph import Graph
from coditect.workflow.states import TaskState, WorkflowState

_PASSED_ON = {
    TaskState.FAILED: TaskState.FAILED,
    TaskState.DEAD: TaskState.FAILED,
    TaskState.REJECTED: TaskState.REJECTED,
    TaskState.CANCELED: TaskState.CANCELED,
    TaskState.SKIPPED: TaskState.SKIPPED,
}
_WORST_FIRST = (TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELED, TaskState.SKIPPED)
_ENDS_OF_A_WORKFLOW = {
    TaskState.FAILED: WorkflowState.FAILED,
    TaskState.REJECTED: WorkflowState.REJECTED,
    TaskState.CANCELED: WorkflowState.CANCELED,
}


@value
class Tally:
    """The counts of a node's edges: enough to decide about the node without another look at its predecessors."""

    needed: int
    open: int
    """Edges whose predecessor has not ended."""
    met: int = 0
    worst: TaskState | None = None
    """Of the edges that can never be met: the node's end state when too many edges are lost."""

    @classmethod
    def of(cls, node: Node) -> Self:
        """Return the edge counts of a node none of whose predecessors has ended."""
        return cls(node.needed, len(node.after))

    def with_end(self, policy: OnFailure, state: TaskState) -> Tally:
        """Return the edge counts after one more predecessor ended, by the edge's policy and the predecessor's state."""
        if state is TaskState.COMPLETED or policy is OnFailure.ALLOW:
            return Tally(self.needed, self.open - 1, self.met + 1, self.worst)
        lost = TaskState.SKIPPED if policy is OnFailure.SKIP else _PASSED_ON[state]
        return Tally(self.needed, self.open - 1, self.met, _worse(self.worst, lost))

    @property
    def decision(self) -> TaskState | None:
        """The next state of the blocked node: ready, or the state in which the node ends; None while the node waits."""
        if self.met >= self.needed:
            return TaskState.READY
        return self.worst if self.met + self.open < self.needed else None


def decide(node: Node, states: Mapping[str, TaskState]) -> TaskState | None:
    """Return the next state of a blocked node by the states of its predecessors; None while the node has to wait.

    `ready` is before the condition: where `when` does not hold, the node is skipped instead.
    """
    tally = Tally.of(node)
    for edge in node.after:
        if (state := states[edge.node]).terminal:
            tally = tally.with_end(edge.on_failure, state)
    return tally.decision


def consequences(graph: Graph, states: Mapping[str, TaskState], ended: Iterable[str]) -> dict[str, TaskState]:
    """Return the new states of all blocked nodes that the ends of the given nodes decide, directly or in turn.

    `states` has the given ends already. A node occurs at most once, and only if it was blocked.
    """
    changed: dict[str, TaskState] = {}
    wave = list(ended)
    while wave:
        touched = dict.fromkeys(dependent for name in wave for dependent in graph.dependents[name])
        wave = []
        for name in touched:
            if name in changed or states[name] is not TaskState.BLOCKED:
                continue
            node = graph.nodes[name]
            now = {edge.node: changed.get(edge.node, states[edge.node]) for edge in node.after}
            if (state := decide(node, now)) is not None:
                changed[name] = state
                if state.terminal:
                    wave.append(name)
    return changed


def beginning(graph: Graph) -> dict[str, TaskState]:
    """Return the node states of a workflow that was just accepted: the roots are ready, all other nodes are blocked."""
    return {name: TaskState.BLOCKED if graph.nodes[name].after else TaskState.READY for name in graph.order}


def workflow_end(graph: Graph, states: Mapping[str, TaskState]) -> WorkflowState | None:
    """Return the end state of a workflow, by its last nodes; None while any node has not ended."""
    if not all(state.terminal for state in states.values()):
        return None
    worst: TaskState | None = None
    for name in graph.lasts:
        if states[name] is not TaskState.COMPLETED:
            worst = _worse(worst, _PASSED_ON[states[name]])
    return WorkflowState.COMPLETED if worst is None else _ENDS_OF_A_WORKFLOW.get(worst, WorkflowState.COMPLETED)


def compensations(graph: Graph, states: Mapping[str, TaskState]) -> tuple[str, ...]:
    """Return the names of the completed nodes with a compensating capability, the latest first."""
    return tuple(
        name
        for name in reversed(graph.order)
        if states[name] is TaskState.COMPLETED and (call := graph.nodes[name].call) is not None and call.compensate
    )


def _worse(one: TaskState | None, other: TaskState) -> TaskState:
    return other if one is None else min(one, other, key=_WORST_FIRST.index)
