"""The questions of approvals, the nodes of a workflow that wait for a person's answer."""

from __future__ import annotations

from coditect.workflow.definition import Approval
from coditect.workflow.states import TaskState
from dispatcher.ledger import timers
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import APPROVALS
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork

TIMER = "approval"


def ask(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, approval: Approval) -> None:
    """Add an approval's question to the list of open questions, and set the timer of the approval's timeout."""
    row.ready_ms = unit.now_ms
    unit.move(node_key, row, TaskState.AWAITING_APPROVAL)
    unit.tr.set(APPROVALS.pack((unit.now_ms, node_key.workflow, node_key.node)), approval.question.encode())
    if approval.timeout_ms is not None:
        due_ms = unit.now_ms + approval.timeout_ms
        timers.put(unit.tr, unit.shard, Timer(node_key.workflow, node_key.node, TIMER, due_ms))
        unit.effects.timers = True


def close(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Remove an approval's question from the list of open ones, and cancel the approval's timeout."""
    unit.tr.clear(APPROVALS.pack((row.ready_ms or 0, node_key.workflow, node_key.node)))
    timers.cancel(unit.tr, node_key.workflow, node_key.node, TIMER)
