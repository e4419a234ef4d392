"""The questions to a person: of approval nodes, and of tasks that the approval policy asks about."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger import timers
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import APPROVALS
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork

TIMER = "approval"


def ask(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, question: str, timeout_ms: int | None) -> None:
    """Have a node await approval: list its question as open, and set the timer of its timeout, if it has one."""
    row.ready_ms = unit.now_ms
    unit.move(node_key, row, TaskState.AWAITING_APPROVAL)
    unit.tr.set(APPROVALS.pack((unit.now_ms, node_key.workflow, node_key.node)), question.encode())
    if timeout_ms is not None:
        timers.put(unit.tr, unit.shard, Timer(node_key.workflow, node_key.node, TIMER, unit.now_ms + timeout_ms))
        unit.effects.timers = True


def close(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Remove a node's question from the list of open ones, and cancel its timeout."""
    unit.tr.clear(APPROVALS.pack((row.ready_ms or 0, node_key.workflow, node_key.node)))
    timers.cancel(unit.tr, node_key.workflow, node_key.node, TIMER)
