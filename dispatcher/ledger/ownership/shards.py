"""The assignment of shards to dispatchers by leases, so that the living ones' numbers of shards differ by one at most.

A workflow belongs to one of N shards for ever, a shard to one dispatcher by the lease `("shard", number)`. Every
`STEP_MS` each dispatcher runs `step`: it renews itself, takes owners for dead whose beat stood still, gives away the
shards over its fair share and takes free shards within it. There is no leader: all dispatchers plan the same from the
same state, and where two saw different states, the leases decide and the next step mends it. Shares differ by one at
most; every owner that renews counts in the shares, so only dispatchers that run `step` renew.

The numbers: a killed dispatcher's last beat is first seen by another within one step (0.4 s) and lapses at the first
step behind the TTL (2.8 s after it was seen): its shards have moved within 3.2 s. A living one may miss five beats in a
row. A dispatcher that leaves in order is gone at once, and its shards have moved within a step. On SQLite no dispatcher
waits for a beat: only the process that has the file open can be alive.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import SHARDS
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.ownership.leases import Lease, Pulse
from dispatcher.store.transaction import Reads, Transaction

DEFAULT_SHARDS = 16
"""The default number of shards; a dispatcher without a shard is idle, and each shard costs two queues."""
STEP_MS = 400
SHARD_LEASE = "shard"
LOCKS_SHARD_KEY = "lock"
"""The text that decides the shard of all locks, as a workflow's id decides its shard."""


@dataclass(frozen=True, slots=True)
class SharePlan:
    """The shards that a dispatcher must take or give away to own its fair share of all shards."""

    take: tuple[int, ...]
    give: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShareStep:
    """The result of one `step`: shards that a dispatcher owns or must close and give away, and living owners' beats."""

    owned: tuple[Lease, ...]
    """The dispatcher's leases in the order of shards; a new lease's `previous` owner may still work on the shard."""
    to_give: tuple[int, ...]
    """The shards above its share that the dispatcher must close, and that the next step then gives away."""
    beats: Mapping[str, int]
    """The beats of all living owners, as input for `leases.look`."""


def fix_count(tr: Transaction, wanted: int = DEFAULT_SHARDS) -> int:
    """Store `wanted` as the number of shards for good if the store has none yet; return the store's number."""
    if count := fixed_count(tr):
        return count
    if wanted < 1:
        raise ValueError("There is at least one shard")
    tr.set(SHARDS.pack(), versions.SHARD_COUNT.pack((wanted,)))
    return wanted


def fixed_count(tr: Reads) -> int:
    """Return the store's number of shards; 0 in a new store that has no number yet."""
    value = tr.get(SHARDS.pack())
    return 0 if value is None else int(versions.SHARD_COUNT.unpack(value)[0])


def shard_of(workflow: str, count: int) -> int:
    """Return the number of a workflow's shard, from the first 8 bytes of the SHA-256 of the workflow's id."""
    return int.from_bytes(hashlib.sha256(workflow.encode()).digest()[:8], "big") % count


def drawn_id(seed: str, at_ms: int, shard: int, count: int) -> str:
    """Return a workflow id, a UUIDv7, that hashes to the given shard; the same arguments always give the same id.

    It is drawn until it hashes to the shard, so that one transaction can change the workflow and what starts it.
    """
    for number in itertools.count():
        drawn = hashlib.sha256(f"{seed} {number}".encode()).digest()
        bits = at_ms << 80 | 7 << 76 | (int.from_bytes(drawn[:2]) & 0xFFF) << 64
        bits |= 2 << 62 | int.from_bytes(drawn[2:10]) & (1 << 62) - 1
        workflow = str(UUID(int=bits))
        if shard_of(workflow, count) == shard:
            return workflow
    raise AssertionError("every shard has some ids")


def lease_name(shard: int) -> leases.Name:
    """Return the name of the lease of a shard: `("shard", number)`."""
    return (SHARD_LEASE, shard)


def plan(owners: Mapping[int, str], alive: Collection[str], me: str) -> SharePlan:
    """Return the shards that the dispatcher `me` must take and give away for a fair share among living dispatchers.

    `owners` has every shard; "" or a dead owner means free. The owner with the most shards keeps the larger share, so
    as few shards as possible move.
    """
    owned: dict[str, list[int]] = {member: [] for member in alive}
    free: list[int] = []
    for shard, owner in sorted(owners.items()):
        owned.get(owner, free).append(shard)
    share, larger = divmod(len(owners), len(owned))
    for position, member in enumerate(sorted(owned, key=lambda member: (-len(owned[member]), member))):
        fair = share + (position < larger)
        lacking = max(fair - len(owned[member]), 0)
        if member == me:
            return SharePlan(tuple(free[:lacking]), tuple(owned[me][fair:]))
        free = free[lacking:]
    raise ValueError("Only one of the living can plan")


def step(
    tr: Transaction,
    me: str,
    beat: int,
    *,
    count: int,
    pulses: Collection[Pulse] = (),
    busy: Collection[int] = (),
) -> ShareStep:
    """Renew a dispatcher's heartbeat, expire dead dispatchers, and give away and take shards, in one transaction.

    `busy` are the shards that the owner works on: none of them is given before it is closed. Idempotent by `beat`.
    Afterwards the caller looks: `pulses = leases.look(pulses, step.beats, now_ms=...)`.
    """
    leases.renew(tr, me, beat)
    for pulse in pulses:
        if pulse.owner != me and pulse.has_lapsed():
            leases.expire(tr, pulse)
    beats = {**leases.beats(tr.snapshot), me: beat}
    held = {lease.name[1]: lease for lease in leases.read_all(tr.snapshot, SHARD_LEASE)}
    owners = {shard: held[shard].owner if shard in held else "" for shard in range(count)}
    plan_now = plan(owners, beats.keys(), me)
    to_give = tuple(shard for shard in plan_now.give if shard in busy)
    released = {shard for shard in plan_now.give if shard not in busy and leases.release(tr, held[shard])}
    taken = [leases.acquire(tr, lease_name(shard), me) for shard in plan_now.take]
    kept = [held[shard] for shard, owner in owners.items() if owner == me and shard not in released]
    owned = sorted([*kept, *(lease for lease in taken if lease)], key=lambda lease: lease.name)
    return ShareStep(tuple(owned), to_give, beats)


def leave(tr: Transaction, me: str) -> None:
    """Release all shards of a dispatcher that shuts down and must not call `step` again; others can take them now."""
    for lease in leases.read_all(tr.snapshot, SHARD_LEASE):
        if lease.owner == me:
            leases.release(tr, lease)
    leases.leave(tr, me)


def owners(tr: Reads, count: int) -> dict[int, str]:
    """Return the owner of each shard by number, dead or alive; "" for a shard without an owner."""
    found: dict[int, str] = dict.fromkeys(range(count), "")
    for lease in leases.read_all(tr, SHARD_LEASE):
        shard = int(lease.name[1])
        if shard in found:
            found[shard] = lease.owner
    return found
