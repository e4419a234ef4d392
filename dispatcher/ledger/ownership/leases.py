"""Named leases with epochs, which decide which dispatcher may work on which shard and fence off former owners.

An *owner* is one life of one dispatcher, by a name that is never used again. An owner is alive while its *beat* grows,
and one beat keeps all of its leases. Clocks of two processes are never compared: an observer that wants a lease watches
the owner's beat, and when the beat has not moved for a TTL *of the observer's own watching*, takes the owner for dead
(`Pulse`, `expire`). Time in which the observer did not look, because it or the store stood still, hardly counts. So a
new observer grants every lease one full TTL before it expires any.

An owner may be taken for dead by mistake, and safety does not depend on it: every transaction that works under a lease
calls `check`, which reads the lease's key. A former owner gets `LostLease`, however long it was paused, or the conflict
that leads there. Beats have their own key, so renewing does not disturb the work.

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
"""The time in milliseconds after which an owner whose beat has not moved counts as dead."""
LOOKS_PER_TTL = 3
"""The number of looks at a beat in `TTL_MS` before its owner can count as dead."""

Name = tuple[str | int, ...]
"""The name of a lease as a tuple, such as `("shard", 7)` or `("leader", "sweep")`."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as stored: name, owner, epoch, and the former owner if the lease was taken from a dead one."""

    name: Name
    owner: str
    epoch: int
    """The number of this ownership, which grows with every owner and is never given twice, even after a release."""
    previous: str = ""
    """The former owner, if it was taken for dead; empty when it released the lease in order."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """The heartbeat counter (beat) of a lease's owner as one observer saw it, and for how long it has not grown."""

    owner: str
    beat: int
    still_ms: int
    """The milliseconds for which the beat has not moved, counting only time in which the observer looked."""
    at_ms: int
    """The time of the observer's last look in milliseconds, on the observer's own clock."""

    def has_lapsed(self, ttl_ms: int = TTL_MS) -> bool:
        """Tell whether the owner's heartbeat counter has not grown for `ttl_ms`, so that the owner counts as dead."""
        return self.still_ms >= ttl_ms


def look(
    pulses: Mapping[str, Pulse], beats: Mapping[str, int], *, now_ms: int, ttl_ms: int = TTL_MS
) -> dict[str, Pulse]:
    """Return for how long each owner's heartbeat counter has not grown, by comparing it with the last observation.

    Owners without a beat are left out. `now_ms` is on any clock of the observer that never goes back. Pure: call it
    after the transaction, not in it.
    """
    return {owner: _look(pulses.get(owner), owner, beat, now_ms, ttl_ms) for owner, beat in beats.items()}


def _look(before: Pulse | None, owner: str, beat: int, now_ms: int, ttl_ms: int) -> Pulse:
    if before is None or before.beat != beat:
        return Pulse(owner, beat, 0, now_ms)
    counted = min(max(now_ms - before.at_ms, 0), ttl_ms // LOOKS_PER_TTL)
    return Pulse(owner, beat, before.still_ms + counted, now_ms)


def beats(tr: Reads) -> dict[str, int]:
    """Return the current heartbeat counter of every owner that has neither left nor been declared dead."""
    return {BEATS.unpack(key)[0]: versions.BEAT.unpack(value)[0] for key, value in tr.get_range(*BEATS.range())}


def renew(tr: Transaction, owner: str, beat: int) -> None:
    """Write an owner's heartbeat counter, which keeps the owner and its leases alive; `beat` grows at each call."""
    tr.set(BEATS.pack((owner,)), versions.BEAT.pack((beat,)))


def expire(tr: Transaction, pulse: Pulse) -> bool:
    """Declare an owner dead, which frees its leases; return False if its heartbeat counter has grown since last seen.

    Return whether the owner is dead after the call, also when another observer expired it. A living owner that was
    taken for dead may renew again, and keeps the leases that no other owner took meanwhile. The caller checks whether
    the pulse has lapsed.
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
    """Declare every owner but the given one dead, in a store that no other process can have open."""
    for other in beats(tr):
        if other != owner:
            tr.clear(BEATS.pack((other,)))


def acquire(tr: Transaction, name: Name, owner: str) -> Lease | None:
    """Acquire and return a lease for an owner if it is free, its own, or of a dead holder; None if a living one has it.

    Raises:
        LostLease: when this owner itself is taken for dead: it must `renew` first.
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
    """Free a lease so that its next owner gets a higher epoch; return False when it was lost before.

    The next owner finds no `previous`, because the owner has closed its work and need not be evicted.
    """
    if not _is_held(tr, lease):
        return False
    _write(tr, Lease(lease.name, "", lease.epoch))
    return True


def check(tr: Transaction, lease: Lease) -> None:
    """Make sure that the transaction commits only while the owner holds the lease with the same epoch.

    The call reads the lease's key, so a take-over that commits first is a conflict, and the repetition ends here.

    Raises:
        LostLease: when the lease was released or taken over; never retryable.
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
    """End an owner's life at once, which frees its leases; their next owners get its name in `Lease.previous`."""
    tr.clear(BEATS.pack((owner,)))


def read(tr: Reads, name: Name) -> Lease:
    """Return the current state of a lease: owner "" when it is free, epoch 0 when it was never held."""
    value = tr.get(LEASES.pack(name))
    return Lease(name, "", 0) if value is None else _lease(name, value)


def read_all(tr: Reads, kind: str) -> list[Lease]:
    """Return all leases of one kind, such as `shard`, in the order of their names."""
    return [_lease(LEASES.unpack(key), value) for key, value in tr.get_range(*LEASES.range((kind,)))]


def _is_held(tr: Transaction, lease: Lease) -> bool:
    found = read(tr, lease.name)
    return (found.owner, found.epoch) == (lease.owner, lease.epoch)


def _lease(name: Name, value: bytes) -> Lease:
    owner, epoch, previous = versions.LEASE.unpack(value)
    return Lease(name, owner, epoch, previous)


def _write(tr: Transaction, lease: Lease) -> None:
    tr.set(LEASES.pack(lease.name), versions.LEASE.pack((lease.owner, lease.epoch, lease.previous)))
