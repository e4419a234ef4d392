"""The outbox: rows for tasks to publish, written in the transaction that claims the nodes, cleared on the confirm.

A row is published after the commit and cleared with the next one. Every row has a *publication number*, which grows
within its shard and is never given twice, not even after the row is gone. A row that outlived its dispatcher may have
been published or not; the next owner of the shard publishes the node under a new number, so that the two publications
differ, and drops the old row.

Numbers are counted in the shard's own key: two transactions of one shard that publish conflict. The shard's one owner
runs them one after the other, in batches.
"""

from __future__ import annotations

from collections.abc import Iterable

from coditect.model.message import value
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import OUTBOX, PUBLISHED
from dispatcher.store.transaction import KeyValue, Reads, Transaction


@value
class Row:
    """A row of the outbox: a node whose task is to be published, under a publication number."""

    publication: int
    workflow: str
    node: str
    fence: int


def put(tr: Transaction, shard: int, row: Row) -> None:
    """Write the row of a task that is to be published, so that a crash between commit and publish loses no task.

    The number of the row follows the one of `last_number`, and `count` records it.
    """
    tr.set(OUTBOX.pack((shard, row.publication)), versions.OUTBOX.pack((row.workflow, row.node, row.fence)))


def last_number(tr: Reads, shard: int) -> int:
    """Return the last publication number that the shard gave; 0 when it never gave one."""
    stored = tr.get(PUBLISHED.pack((shard,)))
    return 0 if stored is None else int(versions.PUBLISHED.unpack(stored)[0])


def count(tr: Transaction, shard: int, last: int) -> None:
    """Record `last` as the highest publication number that the shard has given."""
    tr.set(PUBLISHED.pack((shard,)), versions.PUBLISHED.pack((last,)))


def waiting(tr: Reads, shard: int, *, after: int = 0, limit: int = 100) -> list[Row]:
    """Return the shard's first `limit` outbox rows above number `after`, in the order of their publication numbers."""
    begin, end = OUTBOX.pack((shard, after + 1)), OUTBOX.range((shard,))[1]
    return [_row(pair) for pair in tr.get_range(begin, end, limit=limit)]


def clear(tr: Transaction, shard: int, publications: Iterable[int]) -> None:
    """Remove the outbox rows of the given publications; a row that is missing is ignored."""
    for publication in publications:
        tr.clear(OUTBOX.pack((shard, publication)))


def _row(pair: KeyValue) -> Row:
    key, row = pair
    workflow, node, fence = versions.OUTBOX.unpack(row)
    return Row(OUTBOX.unpack(key)[1], workflow, node, fence)
