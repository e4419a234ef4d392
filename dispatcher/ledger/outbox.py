"""The outbox of a shard: the published nodes whose tasks the broker may not have.

Every publication has a *number*, which grows within its shard and is never given twice. The transaction that claims a
node gives it the number, and its task is published after the commit. Once the broker has confirmed all publications up
to a number, a later transaction records that number. So the outbox needs no rows of its own: it is the nodes that are
published under a higher number. After a crash their tasks may be with the broker or not; the shard's next owner
publishes them again under new numbers, so that the two publications of a node differ.

Both numbers are in one key of the shard: two transactions of one shard that publish conflict. The shard's one owner
runs them one after the other, in batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import PUBLISHED
from dispatcher.store.transaction import Reads, Transaction


@dataclass(frozen=True, slots=True)
class Numbers:
    """The publication numbers of a shard."""

    last: int = 0
    """The last number given; 0 when none was given."""
    confirmed: int = 0
    """The number up to which the broker has confirmed all publications of nodes that are still published."""


def numbers(tr: Reads, shard: int) -> Numbers:
    """Return the publication numbers that a shard has given, and that its broker has confirmed."""
    stored = tr.get(PUBLISHED.pack((shard,)))
    return Numbers() if stored is None else Numbers(*versions.PUBLISHED.unpack(stored))


def record(tr: Transaction, shard: int, numbers: Numbers) -> None:
    """Record the last number that the shard has given, and the one up to which the broker has confirmed all."""
    tr.set(PUBLISHED.pack((shard,)), versions.PUBLISHED.pack((numbers.last, numbers.confirmed)))
