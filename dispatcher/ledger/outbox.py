"""What is to be published: written with the state that wants it, published after the commit, cleared with the next.

Every row has a *publication number*, which grows within its shard and is never given twice, not even after the row is
gone. A row that outlived its dispatcher may have been published or not; its successor publishes the node under a new
number, so that the two can be told apart, and drops the old row.

Numbers are counted in the shard's own key: two transactions of one shard that publish conflict. Its one owner runs them
one after the other, in batches.
"""

from __future__ import annotations

from collections.abc import Iterable

from coditect.model.value import value
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import OUTBOX, PUBLISHED
from dispatcher.store.transaction import KeyValue, Reads, Transaction


@value
class Row:
    """A node on its way to the broker."""

    publication: int
    workflow: str
    node: str
    fence: int


def put(tr: Transaction, shard: int, row: Row) -> None:
    """Writes the row under a number that `last_number` and `count` gave it."""
    tr.set(OUTBOX.pack((shard, row.publication)), versions.OUTBOX.pack((row.workflow, row.node, row.fence)))


def last_number(tr: Reads, shard: int) -> int:
    """The last publication number that the shard gave; 0 when it never gave one."""
    stored = tr.get(PUBLISHED.pack((shard,)))
    return 0 if stored is None else int(versions.PUBLISHED.unpack(stored)[0])


def count(tr: Transaction, shard: int, last: int) -> None:
    """Says that the numbers up to `last` are given."""
    tr.set(PUBLISHED.pack((shard,)), versions.PUBLISHED.pack((last,)))


def waiting(tr: Reads, shard: int, *, after: int = 0, limit: int = 100) -> list[Row]:
    """The shard's first rows with numbers above `after`, in the order of their numbers."""
    begin, end = OUTBOX.pack((shard, after + 1)), OUTBOX.range((shard,))[1]
    return [_row(pair) for pair in tr.get_range(begin, end, limit=limit)]


def clear(tr: Transaction, shard: int, publications: Iterable[int]) -> None:
    """Removes rows that the broker confirmed; those that are gone already are ignored."""
    for publication in publications:
        tr.clear(OUTBOX.pack((shard, publication)))


def _row(pair: KeyValue) -> Row:
    key, row = pair
    workflow, node, fence = versions.OUTBOX.unpack(row)
    return Row(OUTBOX.unpack(key)[1], workflow, node, fence)
