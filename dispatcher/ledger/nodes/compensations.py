"""The list of a workflow's completed nodes that can be undone, in the order in which they completed.

A node's place in the list is a number above that of every node before it. A node without a compensation has no row.
"""

from __future__ import annotations

from collections.abc import Iterator

from coditect.workflow.definition import COMPENSATION, Call, SubWorkflow
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import COMPENSATE
from dispatcher.ledger.nodes import children
from dispatcher.ledger.unit_of_work import COMPENSATE as NEXT
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import KeyValue


def note(unit: UnitOfWork, node_key: NodeKey) -> None:
    """Add a completed node to its workflow's list of nodes to undo, if it or its child workflow can be compensated."""
    if not _can_be_undone(unit, node_key):
        return
    run, before = unit.run(node_key.workflow), next(listed(unit, node_key.workflow), None)
    assert run is not None
    number = 1 if before is None else COMPENSATE.unpack(before[0])[1] + 1
    unit.tr.set(COMPENSATE.pack((node_key.workflow, number)), node_key.node.encode())
    run.to_compensate += 1


def _can_be_undone(unit: UnitOfWork, node_key: NodeKey) -> bool:
    """Tell whether a node that has just completed has a compensation, or a child that undoes nodes of its own."""
    match unit.definition(node_key).work:
        case Call() as work:
            return work.compensate is not None
        case SubWorkflow() as work if not node_key.is_compensation:
            child = children.current(unit, node_key)
            run = None if child is None else unit.run(child)
            return work.compensate is not None or (run is not None and run.to_compensate > 0)
        case _:  # a map is compensated element by element
            return False


def last(unit: UnitOfWork, workflow: str) -> NodeKey | None:
    """Return the key of the compensation of the node that completed last and is not compensated; None without one."""
    found = next(listed(unit, workflow), None)
    return None if found is None else of(NodeKey(workflow, found[1].decode()))


def of(node_key: NodeKey) -> NodeKey:
    """Return the key of the node that compensates the given node: `ship.compensate` for `ship`."""
    return NodeKey(node_key.workflow, node_key.node + COMPENSATION)


def listed(unit: UnitOfWork, workflow: str) -> Iterator[KeyValue]:
    """Yield the nodes of a workflow that are to be compensated, as rows; the node that completed last comes first."""
    begin, end = COMPENSATE.range((workflow,))
    while rows := unit.tr.get_range(begin, end, limit=1, reverse=True):
        yield rows[0]
        end = rows[0][0]


def settle(unit: UnitOfWork, node_key: NodeKey) -> None:
    """If a compensation has completed, remove the undone node from the list, and have the next compensation begin."""
    run, row, node = unit.run(node_key.workflow), unit.node(node_key), node_key.compensated.node.encode()
    assert run is not None and row is not None
    found = next((key for key, listed_node in listed(unit, node_key.workflow) if listed_node == node), None)
    if row.state is TaskState.COMPLETED and found is not None:
        unit.tr.clear(found)
        run.to_compensate -= 1
        if (run.to_compensate or run.restoring is not None) and not run.canceling:
            unit.leave(NodeKey(node_key.workflow, ""), NEXT)
