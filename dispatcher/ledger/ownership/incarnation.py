"""The incarnations of a store's data, so that a restored backup never gives a fence or publication number again.

Every start of a dispatcher begins an *incarnation*, and so does a restore. Fences and publication numbers that are
given in it lie above its `floor`: 3,000,000,017 is the 17th number of the third one. A store that was copied back knows
fewer incarnations than were begun since the copy was made. Redis remembers the highest one of each store, outside of
the store, so the next incarnation is above those that were abandoned. Where Redis was wiped, too, a restore by command
counts the hours since 2026, which only grow.
"""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import MARKERS, STORE
from dispatcher.store.errors import StoreMisconfigured
from dispatcher.store.transaction import Reads, Transaction

OTHER_FORM_FIX = "start with a new store: name another by --store or CODITECT_STORE_URL, or move this one away"
NUMBERS = 1_000_000_000
"""The count of numbers that one incarnation can give; JSON keeps nine million incarnations exact."""
FORM = 2
"""The form of all rows of a store. A store of another form has to be made anew: nothing reads both."""
HOUR_MS = 3_600_000
HOURS_FROM_MS = 1_767_225_600_000
"""The instant from which a restore counts hours: the beginning of 2026, in milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Incarnation:
    """A life of a store's data, under a number that grows with each start of a dispatcher and each restore."""

    store: str
    """The identity of the store, which is the same in every copy of its data."""
    number: int
    is_restored: bool = False
    """Whether the data is an older copy: the store knew fewer incarnations than Redis."""

    @property
    def floor(self) -> int:
        """The number below every fence and every publication number that the incarnation gives."""
        return self.number * NUMBERS


def current(tr: Reads) -> Incarnation | None:
    """Return the latest incarnation that the store has recorded; None in a new store.

    Raises:
        StoreMisconfigured: when the store's rows have another form than those of this version.
    """
    row = tr.get(STORE.pack())
    if row is None:
        return None
    store, number, *form = versions.STORE.unpack(row)
    if form != [FORM]:
        raise StoreMisconfigured("Another version made this store, and this one cannot read it", fix=OTHER_FORM_FIX)
    return Incarnation(store, number)


def begin(tr: Transaction, new_id: str, *, known: int) -> Incarnation:
    """Begin a store's next incarnation, numbered above its last and above `known`, the one in Redis; a new store has 0.

    The publications of a restored store may be with no broker: its shards forget their broker's markers, so that all of
    them are published again. A repeated call, when the answer to the commit was lost, skips a number.
    """
    before = current(tr)
    if before is None:
        return _write(tr, Incarnation(new_id, 0))
    is_restored = known > before.number
    if is_restored:
        _forget_brokers(tr)
    return _write(tr, Incarnation(before.store, max(before.number, known) + 1, is_restored))


def restore(tr: Transaction, now_ms: int) -> None:
    """Raise the incarnation number of a store restored from a backup, and have its published tasks published again."""
    before = current(tr)
    if before is not None:
        hours = (now_ms - HOURS_FROM_MS) // HOUR_MS
        _write(tr, Incarnation(before.store, max(before.number + 1, hours)))
        _forget_brokers(tr)


def _write(tr: Transaction, incarnation: Incarnation) -> Incarnation:
    tr.set(STORE.pack(), versions.STORE.pack((incarnation.store, incarnation.number, FORM)))
    return incarnation


def _forget_brokers(tr: Transaction) -> None:
    tr.clear_range(*MARKERS.range())
