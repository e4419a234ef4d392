"""Who may work on what: named leases, each with an epoch that fences off its former owners.

An *owner* is one life of one dispatcher, by a name that is never used again. It is alive while its *beat* grows, and
one beat keeps all its leases. Nobody's clock is compared with another's: who wants a lease looks at the owner's beat,
and when it has not moved for a TTL *of its own looking*, takes the owner for dead (`Pulse`, `expire`). Time that the
observer did not look, because it or the store stood still, hardly counts. So whoever has just begun to look grants
every lease one full TTL before it expires any.

Taking an owner for dead may be wrong, and safety does not need it to be right: every transaction that works under a
lease calls `check`, which reads the lease's key. A former owner gets `LostLease`, however long it was paused, or the
conflict that leads there. Beats have their own key, so renewing does not disturb the work.

After FoundationDB's and the Record Layer's synchronised sessions; the fence is Kleppmann's,
https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dispatcher.ledger import versions
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.keyspace import BEATS, LEASES
from dispatcher.store.transaction import Reads, Transaction

TTL_MS = 2_500
"""How long a beat may stand still. See `shards` for why so long."""
LOOKS_PER_TTL = 3
"""Between two looks at most this part of the TTL counts: fewer never expire anything."""

Name = tuple[str | int, ...]
"""Of a lease: `("shard", 7)`, `("leader", "sweep")`."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its owner holds it."""

    name: Name
    owner: str
    epoch: int
    """Grows with every change of the owner and is never used again, not even after a release."""
    previous: str = ""
    """Who had it before and was taken for dead; empty when the lease was released in order."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What one observer saw of one owner's beat."""

    owner: str
    beat: int
    still_ms: int
    """How long it has not moved, as far as the observer looked."""
    at_ms: int
    """When it looked last, on its own clock."""

    def has_lapsed(self, ttl_ms: int = TTL_MS) -> bool:
        """Whether the owner may be taken for dead."""
        return self.still_ms >= ttl_ms


def look(
    pulses: Mapping[str, Pulse], beats: Mapping[str, int], *, now_ms: int, ttl_ms: int = TTL_MS
) -> dict[str, Pulse]:
    """The pulses after another look; of owners without a beat none is left.

    `now_ms` is on any clock of the observer that never goes back. Pure: call it after the transaction, not in it.
    """
    return {owner: _look(pulses.get(owner), owner, beat, now_ms, ttl_ms) for owner, beat in beats.items()}


def _look(before: Pulse | None, owner: str, beat: int, now_ms: int, ttl_ms: int) -> Pulse:
    if before is None or before.beat != beat:
        return Pulse(owner, beat, 0, now_ms)
    counted = min(max(now_ms - before.at_ms, 0), ttl_ms // LOOKS_PER_TTL)
    return Pulse(owner, beat, before.still_ms + counted, now_ms)


def beats(tr: Reads) -> dict[str, int]:
    """The beat of every owner that is not taken for dead. For `look`: read by snapshot."""
    return {BEATS.unpack(key)[0]: versions.BEAT.unpack(value)[0] for key, value in tr.get_range(*BEATS.range())}


def renew(tr: Transaction, owner: str, beat: int) -> None:
    """Says that the owner lives; also how it begins. `beat` is its own count of renewals: each one higher."""
    tr.set(BEATS.pack((owner,)), versions.BEAT.pack((beat,)))


def expire(tr: Transaction, pulse: Pulse) -> bool:
    """Takes the owner for dead if its beat is still the one that was seen: all its leases are free then.

    True when it is dead after this, also when somebody else said so. If it lives it may renew again and keep what
    nobody took meanwhile. Whether the pulse has lapsed is for the caller to see.
    """
    key = BEATS.pack((pulse.owner,))
    value = tr.get(key)
    if value is None:
        return True
    if versions.BEAT.unpack(value)[0] != pulse.beat:
        return False
    tr.clear(key)
    return True


def expire_others(tr: Transaction, owner: str) -> None:
    """Take every other owner for dead; only in a store that no other process can have open."""
    for other in beats(tr):
        if other != owner:
            tr.clear(BEATS.pack((other,)))


def acquire(tr: Transaction, name: Name, owner: str) -> Lease | None:
    """The lease for this owner if it has it already, nobody has it, or who has it does not live; else None.

    Raises: LostLease when the owner itself is taken for dead: it must `renew` first.
    """
    if tr.get(BEATS.pack((owner,))) is None:
        raise LostLease("Renew before acquiring: the owner is taken for dead", lease=name, owner=owner)
    found = read(tr, name)
    if found.owner == owner:
        return found
    if found.owner and tr.get(BEATS.pack((found.owner,))) is not None:
        return None
    lease = Lease(name, owner, found.epoch + 1, found.owner)
    _write(tr, lease)
    return lease


def release(tr: Transaction, lease: Lease) -> bool:
    """Frees the lease if it is still this one. Its epoch stays, so the next is higher. False when it was lost.

    Who takes it next finds no `previous`: the owner has let go of what it held, and is not to be evicted.
    """
    if not _is_held(tr, lease):
        return False
    _write(tr, Lease(lease.name, "", lease.epoch))
    return True


def check(tr: Transaction, lease: Lease) -> None:
    """Lets the transaction commit only while the lease is this owner's, with this epoch.

    It reads the lease's key, so a take-over that commits first is a conflict, and the repetition ends here.

    Raises: LostLease; never retryable.
    """
    if _is_held(tr, lease):
        return
    now = read(tr, lease.name)
    raise LostLease(
        "The lease is another's by now: stop working for it",
        lease=lease.name,
        owner=lease.owner,
        epoch=lease.epoch,
        owner_now=now.owner,
        epoch_now=now.epoch,
    )


def leave(tr: Transaction, owner: str) -> None:
    """End the owner at once: its leases are free, and who takes one finds the owner as `previous`."""
    tr.clear(BEATS.pack((owner,)))


def read(tr: Reads, name: Name) -> Lease:
    """The lease as it stands: owner "" when it is free, epoch 0 when it never was held."""
    value = tr.get(LEASES.pack(name))
    return Lease(name, "", 0) if value is None else _lease(name, value)


def read_all(tr: Reads, kind: str) -> list[Lease]:
    """The leases whose name begins with the kind, in the order of their names."""
    return [_lease(LEASES.unpack(key), value) for key, value in tr.get_range(*LEASES.range((kind,)))]


def _is_held(tr: Transaction, lease: Lease) -> bool:
    found = read(tr, lease.name)
    return (found.owner, found.epoch) == (lease.owner, lease.epoch)


def _lease(name: Name, value: bytes) -> Lease:
    owner, epoch, previous = versions.LEASE.unpack(value)
    return Lease(name, owner, epoch, previous)


def _write(tr: Transaction, lease: Lease) -> None:
    tr.set(LEASES.pack(lease.name), versions.LEASE.pack((lease.owner, lease.epoch, lease.previous)))
