"""What is left over: long pieces of work go on in later transactions, each from its cursor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from coditect.errors import InputError, Retryable
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import TODO
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.advance import MOST_SHOWN, MOST_STEPS
from dispatcher.ledger.workflows import again, republish, walks
from dispatcher.store.errors import TransactionTooOld

_CANNOT_BE_DONE = (DamagedValue, InputError, LookupError, TypeError, ValueError, AttributeError, AssertionError)
"""What says so of a piece of work, today and tomorrow; whatever else is raised is the store's."""


class Overdue(TransactionTooOld):
    """The transaction became too old over this piece, which by itself took half of the time or more."""

    def __init__(self, piece: bytes) -> None:
        super().__init__("A piece of what was left over takes too long")
        self.piece = piece


class SetAside(Retryable):
    """This piece cannot be done, or took too long: it is to be set aside, so that no other waits for it."""

    def __init__(self, piece: bytes, *, overdue: bool = False) -> None:
        facts = dict(zip(("shard", "workflow", "node", "kind"), TODO.unpack(piece), strict=True))
        super().__init__("What was left over cannot be done; it is set aside", **facts)
        self.piece = piece
        self.overdue = overdue
        """It may only have been the machine: it is to be tried again."""


def go_on(book: UnitOfWork, limit: int = 8) -> bool:
    """Does some of what earlier transactions left over; False when there was some, and the transaction was full before.

    Raises: SetAside when a piece of it cannot be done. Overdue.
    """
    left, done = MOST_STEPS, 0
    pieces = book.left_over(limit)
    for key, cursor in pieces:
        if left <= 0 or book.is_full:
            break
        try:
            left -= _go_on_with(book, key, cursor, left)
            book.tr.check_age()
        except TransactionTooOld as error:
            raise Overdue(key) from error
        except _CANNOT_BE_DONE as error:
            raise SetAside(key) from error
        done += 1
    advance.follow(book)
    book.effects.unfinished |= bool(book.left_over(1))
    return done > 0 or not pieces


def _go_on_with(book: UnitOfWork, key: bytes, cursor: bytes, most: int) -> int:
    _, workflow, node, kind = TODO.unpack(key)
    book.tr.clear(key)
    if kind == republish.REBUILD:
        return republish.go_on(book, cursor)
    run = book.run(workflow)
    if run is None:
        return 0
    run.todo -= 1
    return _CONTINUED[kind](book, NodeKey(workflow, node), cursor.decode(), most)


def _walked(kind: str, bound: int = MOST_STEPS) -> Callable[[UnitOfWork, NodeKey, str, int], int]:
    return lambda book, place, after, most: walks.walk(book, place, kind, after, min(most, bound))


_CONTINUED: Mapping[str, Callable[[UnitOfWork, NodeKey, str, int], int]] = MappingProxyType(
    {
        advance.RELEASE: advance.release,
        advance.EXPAND: advance.continue_expansion,
        advance.EVALUATE: advance.evaluate_later,
        advance.CANCEL: _walked(advance.CANCEL),
        advance.RESUME: _walked(advance.RESUME),
        advance.SHOW: _walked(advance.SHOW, MOST_SHOWN),
        advance.AGAIN: again.go_on,
        again.FIND: again.find,
    }
)
