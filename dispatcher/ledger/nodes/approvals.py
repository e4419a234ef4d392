"""Approvals: nodes that wait for a person's answer."""

from __future__ import annotations

from coditect.workflow.definition import Approval
from coditect.workflow.states import TaskState
from dispatcher.ledger import timers
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import APPROVALS
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer

TIMER = "approval"


def ask(book: UnitOfWork, place: NodeKey, row: NodeRecord, approval: Approval) -> None:
    """A person is asked, until the approval's timeout."""
    row.ready_ms = book.now_ms
    book.move(place, row, TaskState.AWAITING_APPROVAL)
    book.tr.set(APPROVALS.pack((book.now_ms, place.workflow, place.node)), approval.question.encode())
    if approval.timeout_ms is not None:
        due_ms = book.now_ms + approval.timeout_ms
        timers.put(book.tr, book.shard, Timer(place.workflow, place.node, TIMER, due_ms))
        book.effects.timers = True


def close(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """Nobody is asked any more."""
    book.tr.clear(APPROVALS.pack((row.ready_ms or 0, place.workflow, place.node)))
    timers.cancel(book.tr, place.workflow, place.node, TIMER)
