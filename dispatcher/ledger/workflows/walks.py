"""Walks over all nodes of a workflow: to cancel them, to have them wait for their turn again, to show them."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import advance, claim


def begin_cancel(book: UnitOfWork, workflow: str) -> None:
    """Every node that has not ended ends canceled."""
    walk(book, NodeKey(workflow, advance.ROOT), advance.CANCEL, "", advance.MOST_STEPS)


def begin_resume(book: UnitOfWork, workflow: str) -> None:
    """Every node that is ready waits for its turn again."""
    walk(book, NodeKey(workflow, advance.ROOT), advance.RESUME, "", advance.MOST_STEPS)


def begin_show(book: UnitOfWork, workflow: str) -> None:
    """Every node is shown as it is, for a copy of the graph that lost them."""
    walk(book, NodeKey(workflow, advance.ROOT), advance.SHOW, "", advance.MOST_SHOWN)


def walk(book: UnitOfWork, place: NodeKey, kind: str, after: str, most: int) -> int:
    """Goes over the workflow's nodes behind `after`; how many."""
    start = STATUSES.pack((place.workflow, after)) + b"\0" if after else STATUSES.range((place.workflow,))[0]
    found = book.tr.get_range(start, STATUSES.range((place.workflow,))[1], limit=most + 1)
    met = 0
    for key, stored in found[:most]:
        if not met % advance.AHEAD:
            names = [STATUSES.unpack(one)[1] for one, _ in found[met : met + advance.AHEAD]]
            book.expect_definitions(NodeKey(place.workflow, name) for name in names)
        if met and book.is_full:
            break
        met += 1
        one = NodeKey(place.workflow, STATUSES.unpack(key)[1])
        row = book.met(one, stored)
        if kind == advance.SHOW:
            book.show(one)
        if row is None or row.state.terminal or kind == advance.SHOW:
            continue
        if kind == advance.CANCEL:
            advance.cancel_node(book, one, row)
        elif row.state is TaskState.READY:
            claim.leave_backlog(book, one, row)
            row.start_by_ms = None
            claim.offer(book, one, row)
    if len(found) > met:
        advance.leave(book, place, kind, STATUSES.unpack(found[met - 1][0])[1])
    return met
