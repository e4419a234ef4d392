"""Sweep: what the passing of time does. Timers that are due, and publications that nobody reports on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from coditect.model.result import Failure
from coditect.wire.json import dumps
from coditect.workflow.definition import Approval, OnTimeout
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.commands import Due, Finished, PublicationReturned
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.handlers import finish
from dispatcher.ledger.nodes import advance, approvals, claim, limits
from dispatcher.ledger.nodes.inputs import RESULT, write
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer

NO_QUEUE_MS = 1_000
"""After so long what no queue took is ready again; whether it is published then is the window's decision."""


def due(book: UnitOfWork, command: Due) -> None:
    """Does what the timer was set for, if it still stands."""
    timer = command.timer
    if not timers.finish(book.tr, timer):
        return
    place = NodeKey(timer.workflow, timer.node)
    row = book.node(place)
    act = _KINDS.get(timer.kind)
    if row is not None and act is not None and not row.state.terminal:
        act(book, place, row, timer)


def _try_again(book: UnitOfWork, place: NodeKey, row: NodeRecord, _: Timer) -> None:
    if row.state is not TaskState.RETRY_WAIT:
        return
    if advance.is_over(book.run(place.workflow)):
        advance.end(book, place, row, TaskState.CANCELED, reason="canceled")
    else:
        claim.offer(book, place, row)


def _answer(book: UnitOfWork, place: NodeKey, row: NodeRecord, _: Timer) -> None:
    if row.state is not TaskState.AWAITING_APPROVAL:
        return
    work = book.definition(place).work
    assert isinstance(work, Approval)
    granted = work.on_timeout is OnTimeout.GRANT
    approvals.close(book, place, row)
    row.agent = "timeout"
    write(book, place, RESULT, dumps({"granted": granted, "by": row.agent, "comment": ""}))
    state = TaskState.COMPLETED if granted else TaskState.REJECTED
    advance.end(book, place, row, state, reason="" if granted else "approval_timeout")


def _not_started(book: UnitOfWork, place: NodeKey, row: NodeRecord, timer: Timer) -> None:
    """What waits in a paused workflow waits for the resume, which begins its time anew."""
    run = book.run(place.workflow)
    paused = run is not None and run.state is WorkflowState.PAUSED and row.state is TaskState.READY
    waits = row.start_by_ms is not None and row.start_by_ms + limits.START_GRACE_MS == timer.due_ms
    if waits and row.state is not TaskState.WORKING and not paused:
        _give_up(book, place, row, limits.START_TIMEOUT)


def _not_told(book: UnitOfWork, place: NodeKey, row: NodeRecord, timer: Timer) -> None:
    if row.state is TaskState.WORKING and row.fence == timer.fence:
        book.effects.cancels.append((place, row.publication))
        finish.finished(book, Finished(place, row.fence, row.publication, limits.overdue(row)))
        book.advance_fence(row)  # what its agent may still tell is late


def _not_ended(book: UnitOfWork, place: NodeKey, row: NodeRecord, timer: Timer) -> None:
    if row.deadline_ms == timer.due_ms:
        _give_up(book, place, row, limits.DEADLINE)


def _give_up(book: UnitOfWork, place: NodeKey, row: NodeRecord, failure: Failure) -> None:
    if not advance.is_over(book.run(place.workflow)):  # the cancel ends it
        advance.call_off(book, place, row)
        advance.fail(book, place, row, failure)


_KINDS: Mapping[str, Callable[[UnitOfWork, NodeKey, NodeRecord, Timer], None]] = MappingProxyType(
    {
        claim.RETRY_TIMER: _try_again,
        approvals.TIMER: _answer,
        limits.START_TIMER: _not_started,
        limits.TIMEOUT_TIMER: _not_told,
        limits.DEADLINE_TIMER: _not_ended,
    }
)
"""Every kind of timer of a node, and what it does if it still stands."""


def returned(book: UnitOfWork, command: PublicationReturned) -> None:
    """No queue took the publication: the node is ready again in a moment, and says why it waits."""
    place = command.place
    outbox.clear(book.tr, book.shard, [command.publication])
    row = book.node(place)
    if row is None or row.state is not TaskState.PUBLISHED or row.publication != command.publication:
        return
    advance.withdraw(book, place, row)
    row.reason = "no_queue"
    book.move(place, row, TaskState.RETRY_WAIT)
    timer = Timer(place.workflow, place.node, claim.RETRY_TIMER, book.now_ms + NO_QUEUE_MS, row.fence)
    timers.put(book.tr, book.shard, timer)
    book.effects.timers = True
