"""What is to be published: written with the state that wants it, published after the commit, cleared with the next.

Every row has a *publication number*, which grows within its shard and is never given twice, not even after the row is
gone. A node has at most one row, its newest: `put` for a higher fence replaces it, and `put` for the same fence gives
the same number, so a repeated transaction publishes nothing twice. A row that outlived its dispatcher may have been
published or not; its successor calls `renumber` before it resends, so that the two can be told apart.

Numbers are counted in the shard's own key: two transactions of one shard that publish conflict. Its one owner runs them
one after the other, in batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.layers.errors import StaleFence
from dispatcher.layers.keyspace import OUTBOX, PUBLICATIONS, PUBLISHED, pack_row, unpack_row
from dispatcher.store.transaction import KeyValue, Reads, Transaction


@dataclass(frozen=True, slots=True)
class Row:
    """A message on its way to the broker."""

    publication: int
    workflow: str
    node: str
    fence: int
    message: bytes
    """At most 90,000 bytes; what is larger is a value, and the message says where it is."""


def put(tr: Transaction, shard: int, workflow: str, node: str, *, fence: int, message: bytes) -> int:
    """The number under which the node's attempt with this fence is published; a row of an older fence is dropped.

    Raises: StaleFence; the store's ValueTooLarge.
    """
    last = tr.get(PUBLICATIONS.pack((workflow, node)))
    if last is not None:
        shard_then, fence_then, publication = unpack_row(last)
        if fence_then == fence:
            return int(publication)
        if fence_then > fence:
            raise StaleFence(
                "The node was published with a higher fence already: drop this attempt",
                workflow=workflow,
                node=node,
                fence=fence,
                fence_now=fence_then,
            )
        tr.clear(OUTBOX.pack((shard_then, publication)))
    return _append(tr, shard, workflow, node, fence=fence, message=message)


def waiting(tr: Reads, shard: int, *, after: int = 0, limit: int = 100) -> list[Row]:
    """The shard's first rows with numbers above `after`, in the order of their numbers. Read by snapshot."""
    begin, end = OUTBOX.pack((shard, after + 1)), OUTBOX.range((shard,))[1]
    return [_row(pair) for pair in tr.get_range(begin, end, limit=limit)]


def clear(tr: Transaction, shard: int, publications: list[int]) -> None:
    """Removes rows that the broker confirmed; those that are gone already are ignored."""
    for publication in publications:
        tr.clear(OUTBOX.pack((shard, publication)))


def withdraw(tr: Transaction, workflow: str, node: str) -> bool:
    """Removes the node's row; False when it has none: never published, or confirmed and cleared already.

    A row that is being published meanwhile may still reach the broker.
    """
    last = tr.get(PUBLICATIONS.pack((workflow, node)))
    if last is None:
        return False
    shard, _, publication = unpack_row(last)
    key = OUTBOX.pack((shard, publication))
    if tr.get(key) is None:
        return False
    tr.clear(key)
    return True


def renumber(tr: Transaction, shard: int, *, up_to: int, limit: int = 100) -> int:
    """Gives rows with numbers up to `up_to` new ones, at most `limit`; how many. Until it is 0.

    `up_to` is what `last_number` was when the shard was taken over, so a repetition finds nothing twice.
    """
    found = tr.get_range(OUTBOX.range((shard,))[0], OUTBOX.pack((shard, up_to + 1)), limit=limit)
    for key, value in found:
        row = _row((key, value))
        tr.clear(key)
        _append(tr, shard, row.workflow, row.node, fence=row.fence, message=row.message)
    return len(found)


def last_number(tr: Reads, shard: int) -> int:
    """The last publication number that the shard gave; 0 when it never gave one."""
    value = tr.get(PUBLISHED.pack((shard,)))
    return 0 if value is None else int(unpack_row(value)[0])


def last_publication(tr: Reads, workflow: str, node: str) -> tuple[int, int] | None:
    """Fence and number of the node's newest publication, sent or not; None when there never was one."""
    value = tr.get(PUBLICATIONS.pack((workflow, node)))
    if value is None:
        return None
    _, fence, publication = unpack_row(value)
    return fence, publication


def _append(tr: Transaction, shard: int, workflow: str, node: str, *, fence: int, message: bytes) -> int:
    publication = last_number(tr, shard) + 1
    tr.set(PUBLISHED.pack((shard,)), pack_row(publication))
    tr.set(PUBLICATIONS.pack((workflow, node)), pack_row(shard, fence, publication))
    tr.set(OUTBOX.pack((shard, publication)), pack_row(workflow, node, fence, message))
    return publication


def _row(pair: KeyValue) -> Row:
    key, value = pair
    return Row(OUTBOX.unpack(key)[1], *unpack_row(value))
