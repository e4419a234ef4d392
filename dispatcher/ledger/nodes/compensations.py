"""The list of a workflow's completed nodes that declare a compensation, in the order in which they completed.

A node's place in the list is the number of nodes of the workflow that had completed by then, which no other node of the
workflow gets: completed nodes stay completed. A node without a compensation has no row.
"""

from __future__ import annotations

from coditect.workflow.definition import COMPENSATION, Call
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import COMPENSATE
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import KeyValue


def note(unit: UnitOfWork, node_key: NodeKey) -> None:
    """Append a node that has just completed to the workflow's list, if the node declares a compensation."""
    work = unit.definition(node_key).work
    if not isinstance(work, Call) or work.compensate is None:  # a map is compensated element by element
        return
    run = unit.run(node_key.workflow)
    assert run is not None
    number = run.counts[TaskState.COMPLETED.value]
    unit.tr.set(COMPENSATE.pack((node_key.workflow, number)), node_key.node.encode())
    run.to_compensate += 1


def last(unit: UnitOfWork, workflow: str) -> NodeKey | None:
    """Return the compensation of the node that completed last and is not compensated; None when there is none."""
    found = _last(unit, workflow)
    return None if found is None else NodeKey(workflow, found[1].decode() + COMPENSATION)


def _last(unit: UnitOfWork, workflow: str) -> KeyValue | None:
    rows = unit.tr.get_range(*COMPENSATE.range((workflow,)), limit=1, reverse=True)
    return rows[0] if rows else None


def settle(unit: UnitOfWork, node_key: NodeKey) -> None:
    """Take the node of an ended compensation off the list if it completed, and have the next one begin."""
    run, row, found = unit.run(node_key.workflow), unit.node(node_key), _last(unit, node_key.workflow)
    assert run is not None and row is not None
    if row.state is TaskState.COMPLETED and found is not None:
        unit.tr.clear(found[0])
        run.to_compensate -= 1
        if run.to_compensate and not run.canceling:
            unit.compensate_next(node_key.workflow, run)
