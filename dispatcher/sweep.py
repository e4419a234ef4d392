"""Sweep: what the passing of time does. Timers that are due, and publications that nobody reports on."""

from __future__ import annotations

from coditect.model.json import dumps
from coditect.model.workflow.definition import Approval, OnTimeout
from coditect.model.workflow.states import TaskState
from dispatcher.commands import Due, Returned
from dispatcher.layers import timers
from dispatcher.layers.ledger import advance, claiming
from dispatcher.layers.ledger.book import Book
from dispatcher.layers.ledger.effects import Place
from dispatcher.layers.ledger.scope import RESULT, write
from dispatcher.layers.timers import Timer

NO_QUEUE_MS = 1_000
"""After so long it is tried again to publish what no queue took."""


def due(book: Book, command: Due) -> None:
    """Does what the timer was set for, if it still stands."""
    timer = command.timer
    if not timers.finish(book.tr, timer):
        return
    place = Place(timer.workflow, timer.node)
    row = book.node(place)
    if row is None:
        return
    if timer.kind == claiming.RETRY_TIMER and row.state is TaskState.RETRY_WAIT:
        if advance.is_over(book.run(place.workflow)):
            advance.end(book, place, row, TaskState.CANCELED, reason="canceled")
        else:
            claiming.offer(book, place, row)
    elif timer.kind == advance.APPROVAL_TIMER and row.state is TaskState.AWAITING_APPROVAL:
        work = book.definition(place).work
        assert isinstance(work, Approval)
        granted = work.on_timeout is OnTimeout.GRANT
        advance.close_approval(book, place, row)
        row.agent = "timeout"
        write(book, place, RESULT, dumps({"granted": granted, "by": row.agent, "comment": ""}))
        state = TaskState.COMPLETED if granted else TaskState.REJECTED
        advance.end(book, place, row, state, reason="" if granted else "approval_timeout")


def returned(book: Book, command: Returned) -> None:
    """No queue took the publication: the node is ready again in a moment, and says why it waits."""
    place = command.place
    row = book.node(place)
    if row is None or row.state is not TaskState.PUBLISHED or row.publication != command.publication:
        return
    advance.withdraw(book, place, row)
    row.reason = "no_queue"
    book.move(place, row, TaskState.RETRY_WAIT)
    timer = Timer(place.workflow, place.node, claiming.RETRY_TIMER, book.now_ms + NO_QUEUE_MS, row.fence)
    timers.put(book.tr, book.shard, timer)
    book.effects.timers = True
