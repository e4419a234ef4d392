"""Which dispatcher owns which workflows: shards, shared fairly among those that live.

A workflow belongs to one of N shards for ever, a shard to one dispatcher by the lease `("shard", number)`. Every
`STEP_MS` each dispatcher runs `step`: it renews itself, takes those for dead whose beat stood still, gives away what is
over its fair share and takes what is free and within it. Nobody leads: all of them plan the same from the same
state, and where two saw different ones, the leases decide and the next step mends it. Shares differ by one at most;
whoever renews is counted, so only those renew that step.

The numbers: a killed dispatcher's last beat is first seen by another within one step (0.4 s) and lapses at the first
step behind the TTL (2.8 s after it was seen): its shards have moved within 3.2 s. A living one may miss five beats in a
row. One that leaves in order is gone at once, and its shards have moved within a step. On SQLite nobody waits for a
beat: who has opened the file is the only one that lives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dispatcher.ledger import leases, versions
from dispatcher.ledger.keyspace import SHARDS
from dispatcher.ledger.leases import Lease, Pulse
from dispatcher.store.transaction import Reads, Transaction

DEFAULT_SHARDS = 16
"""More dispatchers than shards leave some idle; each shard costs the broker two queues."""
STEP_MS = 400
KIND = "shard"


@dataclass(frozen=True, slots=True)
class SharePlan:
    """What one dispatcher does about its share."""

    take: tuple[int, ...]
    give: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShareStep:
    """How it stands after a step."""

    owned: tuple[Lease, ...]
    """This dispatcher's leases, by shard. A new one's `previous` may still sit on its work."""
    given: tuple[int, ...]
    """Shards that were its own until this step, as far as this try knows: compare `owned` with what was before."""
    to_give: tuple[int, ...]
    """Shards over its share that it still works on: it closes them, and gives them with the next step."""
    beats: Mapping[str, int]
    """Of all that live, for `leases.look`."""


def fix_count(tr: Transaction, wanted: int = DEFAULT_SHARDS) -> int:
    """How many shards the store has: what the first caller wanted, for ever."""
    if count := fixed_count(tr):
        return count
    if wanted < 1:
        raise ValueError("There is at least one shard")
    tr.set(SHARDS.pack(), versions.SHARDS.pack((wanted,)))
    return wanted


def fixed_count(tr: Reads) -> int:
    """How many shards the store has; 0 before anybody said."""
    value = tr.get(SHARDS.pack())
    return 0 if value is None else int(versions.SHARDS.unpack(value)[0])


def shard_of(workflow: str, count: int) -> int:
    """The shard of a workflow: the same in every process, version and language (first 8 bytes of SHA-256)."""
    return int.from_bytes(hashlib.sha256(workflow.encode()).digest()[:8], "big") % count


def lease_name(shard: int) -> leases.Name:
    """The name of the shard's lease."""
    return (KIND, shard)


def plan(owners: Mapping[int, str], alive: Collection[str], me: str) -> SharePlan:
    """What `me`, one of the living, takes and gives. `owners` has every shard; "" or a dead owner means free.

    Who has most keeps the larger share, so as few as possible move.
    """
    owned: dict[str, list[int]] = {member: [] for member in alive}
    free: list[int] = []
    for shard, owner in sorted(owners.items()):
        owned.get(owner, free).append(shard)
    share, larger = divmod(len(owners), len(owned))
    for node_key, member in enumerate(sorted(owned, key=lambda member: (-len(owned[member]), member))):
        fair = share + (node_key < larger)
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
    """Renews, expires the owners whose pulses have lapsed, gives and takes; all in one transaction.

    `busy` are the shards that the owner works on: none of them is given before it is closed.

    Idempotent by `beat`. Afterwards the caller looks: `pulses = leases.look(pulses, step.beats, now_ms=...)`.
    """
    leases.renew(tr, me, beat)
    for pulse in pulses:
        if pulse.owner != me and pulse.has_lapsed():
            leases.expire(tr, pulse)
    beats = {**leases.beats(tr.snapshot), me: beat}
    held = {lease.name[1]: lease for lease in leases.read_all(tr.snapshot, KIND)}
    owners = {shard: held[shard].owner if shard in held else "" for shard in range(count)}
    plan_now = plan(owners, beats.keys(), me)
    to_give = tuple(shard for shard in plan_now.give if shard in busy)
    given = tuple(shard for shard in plan_now.give if shard not in busy and leases.release(tr, held[shard]))
    taken = [leases.acquire(tr, lease_name(shard), me) for shard in plan_now.take]
    kept = [held[shard] for shard, owner in owners.items() if owner == me and shard not in given]
    owned = sorted([*kept, *(lease for lease in taken if lease)], key=lambda lease: lease.name)
    return ShareStep(tuple(owned), given, to_give, beats)


def leave(tr: Transaction, me: str) -> None:
    """Releases every shard at once; the others take them with their next steps. `me` must not step any more."""
    for lease in leases.read_all(tr.snapshot, KIND):
        if lease.owner == me:
            leases.release(tr, lease)
    leases.leave(tr, me)


def owners(tr: Reads, count: int) -> dict[int, str]:
    """Who owns each shard, dead or alive; "" when nobody ever did or it was given away."""
    found: dict[int, str] = dict.fromkeys(range(count), "")
    for lease in leases.read_all(tr, KIND):
        shard = int(lease.name[1])
        if shard in found:
            found[shard] = lease.owner
    return found
