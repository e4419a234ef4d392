"""The decision of a node's join: whether the node may run, ends, or goes on waiting for its predecessors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coditect.workflow.definition import Rest
from coditect.workflow.states import Tally, TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.inputs import before
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork


def decision(unit: UnitOfWork, node_key: NodeKey, tally: Tally) -> TaskState | None:
    """Return a blocked node's next state by how its predecessors ended: ready or an end; None if it has to wait.

    A node for which fewer edges are enough waits until all predecessors have ended, and runs with what there is. Only
    a node whose join cannot be met any more has its definition read.
    """
    decided = tally.decision
    if decided in (None, TaskState.READY):
        return decided
    least = unit.definition(node_key).least
    if least is None or tally.met + tally.open < least:
        return decided
    return None if tally.open else TaskState.READY


def open_predecessors(unit: UnitOfWork, node_key: NodeKey) -> Iterator[tuple[NodeKey, NodeRecord]]:
    """Yield the unfinished predecessors of a node that may run now, if its definition says to cancel them."""
    node = unit.definition(node_key)
    for predecessor in before(node, node_key.workflow) if node.rest is Rest.CANCEL else ():
        row = unit.node(predecessor)
        if row is not None and not row.state.terminal:
            yield predecessor, row


def say(unit: UnitOfWork, node_key: NodeKey, earlier: Tally, tally: Tally, decided: TaskState | None) -> None:
    """Have events published about a node that needs only some predecessors: that it waits for more, or has enough."""
    if decided is TaskState.READY:
        say_of(unit, node_key, "sync.ready", met=tally.met, needed=tally.needed, open=tally.open)
        say_of(unit, node_key, "join.created", met=tally.met)
    elif decided is None and not earlier.met and earlier.worst is None:
        say_of(unit, node_key, "sync.created", needed=tally.needed, of=earlier.open)


def say_of(unit: UnitOfWork, node_key: NodeKey, event: str, **facts: Any) -> None:
    """Add an event `coordination.<what>` about a node, such as `merge.completed`, to be published after the commit."""
    unit.effects.say(f"coordination.{event}", node_key.workflow, node=node_key.node, **facts)
