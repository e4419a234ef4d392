"""The compensation of a child that has completed: the child undoes its own completed nodes, the last one first."""

from __future__ import annotations

from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes import advance, children
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import COMPENSATE, UnitOfWork
from dispatcher.ledger.workflows import redrive


def begin(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Have a node's child workflow undo its own nodes, as the node's compensation; complete it now if none is left."""
    row.ready_ms = row.started_ms = unit.now_ms
    unit.move(node_key, row, TaskState.WORKING)
    child = children.current(unit, node_key.compensated)
    run = None if child is None else unit.run(child)
    if child is None or run is None or not run.to_compensate:  # it was redriven by itself, and is undone
        advance.end(unit, node_key, row, TaskState.COMPLETED)
        return
    run.ended = run.ended or WorkflowState.COMPLETED
    redrive.reopen(unit, child, run)
    unit.leave(NodeKey(child, advance.ROOT), COMPENSATE)
