"""The withdrawal of a node that is not to run on: from the backlog, its timers, its question, or its agent."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger import timers
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import FLIGHTS
from dispatcher.ledger.nodes import claim, waits
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork


def call_off(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Remove a node from the store's list for its state, such as a backlog; an agent with its task gets a cancel."""
    if row.state in (TaskState.PUBLISHED, TaskState.WORKING) and row.publication:
        unit.effects.cancels.append((node_key, row.publication))
        unit.advance_fence(row)  # what its agent may still tell is late
    withdraw(unit, node_key, row)


def withdraw(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Remove a node from the store's list for its state, such as the backlog, published nodes, questions or timers."""
    match row.state:
        case TaskState.READY:
            claim.leave_backlog(unit, node_key, row)
        case TaskState.PUBLISHED | TaskState.WORKING if row.publication:
            unit.tr.clear(FLIGHTS.pack((unit.shard, node_key.workflow, node_key.node)))
        case TaskState.AWAITING_APPROVAL | TaskState.WAITING:
            waits.close(unit, node_key, row)
        case TaskState.RETRY_WAIT:
            timers.cancel(unit.tr, node_key.workflow, node_key.node, claim.RETRY_TIMER)
