"""The continuation of work too long for one transaction, such as a cancel of many nodes, from a stored cursor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from coditect.errors import InputError, NewerVersion, Retryable
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import TODO
from dispatcher.ledger.nodes import advance, children
from dispatcher.ledger.nodes.advance import MOST_SHOWN, MOST_STEPS
from dispatcher.ledger.unit_of_work import CHILD_END, COMPENSATE, UnitOfWork
from dispatcher.ledger.workflows import compensate, redrive_steps, republish, walks
from dispatcher.ledger.workflows.checkpoints import restore
from dispatcher.ledger.workflows.children import begin, end
from dispatcher.store.errors import TransactionTooOld
from dispatcher.store.transaction import KeyValue

_BUGS = (LookupError, TypeError, ValueError, AttributeError, AssertionError)
_CANNOT_BE_DONE = (DamagedValue, InputError, NewerVersion, *_BUGS)
"""The errors by which a piece of unfinished work fails for good; any other error is one of the store."""


class Overdue(TransactionTooOld):
    """The error of a transaction that became too old over one piece of unfinished work, such as a large cancel."""

    def __init__(self, piece: bytes) -> None:
        super().__init__("A piece of what was left over takes too long")
        self.piece = piece


class SetAside(Retryable):
    """The error that a piece of unfinished work, such as a large cancel, failed or took too long, and is skipped."""

    def __init__(self, piece: bytes, *, overdue: bool = False) -> None:
        facts = dict(zip(("shard", "workflow", "node", "kind"), TODO.unpack(piece), strict=True))
        super().__init__("What was left over cannot be done; it is set aside", **facts)
        self.piece = piece
        self.overdue = overdue
        """Whether the piece of work took too long, perhaps on a slow machine: it is to be tried again."""


def go_on(unit: UnitOfWork, limit: int = 8) -> bool:
    """Continue up to `limit` pieces of the shard's unfinished work; return False if there were some, but none was done.

    Raises:
        SetAside: when a piece of work cannot be done.
        Overdue: when a piece of work took too long.
    """
    left, done = MOST_STEPS, 0
    pieces = _left_over(unit, limit)
    for key, cursor in pieces:
        if left <= 0 or unit.is_full:
            break
        try:
            left -= _go_on_with(unit, key, cursor, left)
            unit.tr.check_age()
        except TransactionTooOld as error:
            raise Overdue(key) from error
        except _CANNOT_BE_DONE as error:
            raise SetAside(key) from error
        done += 1
    advance.follow(unit, most=0 if unit.apart else None)
    unit.effects.unfinished |= bool(_left_over(unit, 1))
    return done > 0 or not pieces


def _left_over(unit: UnitOfWork, limit: int) -> list[KeyValue]:
    """Return at most `limit` rows of work that the shard has still to go on with, but none set aside after an error."""
    aside = unit.caches.set_aside
    rows = unit.tr.get_range(*TODO.range((unit.shard,)), limit=limit + len(aside))
    return [row for row in rows if row[0] not in aside][:limit]


def _go_on_with(unit: UnitOfWork, key: bytes, cursor: bytes, most: int) -> int:
    _, workflow, node, kind = TODO.unpack(key)
    unit.tr.clear(key)
    if kind == republish.REBUILD:
        return republish.go_on(unit, cursor)
    run = unit.run(workflow)
    if run is None:
        return 0
    run.todo -= 1
    return _CONTINUED[kind](unit, NodeKey(workflow, node), cursor.decode(), most)


def _walked(kind: str, bound: int = MOST_STEPS) -> Callable[[UnitOfWork, NodeKey, str, int], int]:
    return lambda unit, node_key, after, most: walks.walk(unit, node_key, kind, after, min(most, bound))


_CONTINUED: Mapping[str, Callable[[UnitOfWork, NodeKey, str, int], int]] = MappingProxyType(
    {
        advance.RELEASE: advance.release,
        advance.EXPAND: advance.continue_expansion,
        advance.EVALUATE: advance.evaluate_later,
        advance.ELEMENTS: walks.cancel_elements,
        advance.CANCEL: _walked(advance.CANCEL),
        advance.RESUME: _walked(advance.RESUME),
        advance.SHOW: _walked(advance.SHOW, MOST_SHOWN),
        advance.AGAIN: redrive_steps.go_on,
        redrive_steps.FIND: redrive_steps.find,
        COMPENSATE: compensate.go_on,
        children.START: begin.start,
        children.CANCEL: begin.cancel,
        CHILD_END: end.ended,
        restore.STOP: restore.stop,
        restore.RETURN: restore.go_on_with_state,
        restore.DISCARD: restore.go_on,
    }
)
