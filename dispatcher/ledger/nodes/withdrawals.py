"""The withdrawal of a node that is not to run on: its timers and its question go, and its agent gets a cancel."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger import timers
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes import claim, waits
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork


def call_off(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Remove the timer or question that stands for a node's state; the agent that may have its task gets a cancel."""
    if row.state in (TaskState.PUBLISHED, TaskState.WORKING) and row.publication:
        unit.effects.cancels.append((node_key, row.publication))
        unit.advance_fence(row)  # what its agent may still tell is late
    match row.state:
        case TaskState.AWAITING_APPROVAL | TaskState.WAITING:
            waits.close(unit, node_key, row)
        case TaskState.RETRY_WAIT:
            timers.cancel(unit.tr, node_key.workflow, node_key.node, claim.RETRY_TIMER)
