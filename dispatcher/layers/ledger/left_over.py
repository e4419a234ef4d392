"""What is left over: long pieces of work go on in later transactions, each from its cursor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

from coditect.errors import InputError, Retryable
from dispatcher.layers.errors import DamagedValue
from dispatcher.layers.keyspace import TODO
from dispatcher.layers.ledger import advance, again, anew
from dispatcher.layers.ledger.advance import MOST_SHOWN, MOST_STEPS
from dispatcher.layers.ledger.book import Book
from dispatcher.layers.ledger.effects import Place

log = logging.getLogger(__name__)

_CANNOT_BE_DONE = (DamagedValue, InputError, LookupError, TypeError, ValueError, AttributeError, AssertionError)
"""What says so of a piece of work, today and tomorrow; whatever else is raised is the store's."""


def go_on(book: Book, limit: int = 8) -> None:
    """Does some of what earlier transactions left over.

    Raises: Retryable when a piece of it cannot be done; it is set aside, for no other is to wait for it.
    """
    left = MOST_STEPS
    for key, cursor in book.left_over(limit):
        if left <= 0 or book.is_full:
            break
        try:
            left -= _go_on_with(book, key, cursor, left)
        except _CANNOT_BE_DONE as error:
            book.terms.set_aside.add(key)
            facts = dict(zip(("shard", "workflow", "node", "kind"), TODO.unpack(key), strict=True))
            log.exception("What was left over cannot be done; it is set aside", extra=facts)
            raise Retryable("What was left over cannot be done; it is set aside", **facts) from error
    advance.follow(book)
    book.effects.unfinished |= bool(book.left_over(1))


def _go_on_with(book: Book, key: bytes, cursor: bytes, most: int) -> int:
    _, workflow, node, kind = TODO.unpack(key)
    book.tr.clear(key)
    if kind == anew.REBUILD:
        return anew.go_on(book, cursor)
    run = book.run(workflow)
    if run is None:
        return 0
    run.todo -= 1
    return _CONTINUED[kind](book, Place(workflow, node), cursor.decode(), most)


def _walked(kind: str, bound: int = MOST_STEPS) -> Callable[[Book, Place, str, int], int]:
    return lambda book, place, after, most: advance.walk(book, place, kind, after, min(most, bound))


_CONTINUED: Mapping[str, Callable[[Book, Place, str, int], int]] = MappingProxyType(
    {
        advance.RELEASE: advance.release,
        advance.EXPAND: advance.continue_expansion,
        advance.CANCEL: _walked(advance.CANCEL),
        advance.RESUME: _walked(advance.RESUME),
        advance.SHOW: _walked(advance.SHOW, MOST_SHOWN),
        advance.AGAIN: again.go_on,
        again.FIND: again.find,
    }
)
