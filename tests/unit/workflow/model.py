"""The rules of `coditect.workflow.states` in the plainest way, for what follows them faster."""

from __future__ import annotations

from collections.abc import Mapping

from coditect.workflow.definition import Node
from coditect.workflow.graph import Graph
from coditect.workflow.states import TaskState, WorkflowState

WORST_FIRST = ("failed", "rejected", "canceled", "skipped")


def naive(one: Node, states: Mapping[str, TaskState]) -> TaskState | None:
    """The rules of the module's table, tried out on every way in which the open predecessors could still end."""
    met = [
        e for e in one.after if states[e.node] == "completed" or (e.on_failure == "allow" and states[e.node].terminal)
    ]
    still = [e for e in one.after if not states[e.node].terminal]
    need = {"all": len(one.after), "any": min(1, len(one.after))}.get(str(one.join), one.join)
    assert isinstance(need, int)
    if len(met) >= need:
        return TaskState.READY
    if len(met) + len(still) >= need:
        return None
    lost = [e for e in one.after if e not in met and e not in still]
    kinds = {"skipped" if e.on_failure == "skip" else str(states[e.node]).replace("dead", "failed") for e in lost}
    return TaskState(next(kind for kind in WORST_FIRST if kind in kinds))


def follow(graph: Graph, states: dict[str, TaskState]) -> None:
    """Moves each blocked node that the ends of others decide, directly or in turn."""
    for name in graph.order:
        if states[name] is TaskState.BLOCKED and (state := naive(graph.nodes[name], states)) is not None:
            states[name] = state


def workflow_end(graph: Graph, states: Mapping[str, TaskState]) -> WorkflowState:
    """As the worst of the nodes without dependents."""
    lasts = {str(states[name]).replace("dead", "failed") for name in graph.order if not graph.dependents[name]}
    return WorkflowState(next((kind for kind in WORST_FIRST[:3] if kind in lasts), "completed"))
