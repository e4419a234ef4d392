"""Named leases: who has one, who loses it, and who can never commit again."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.ownership.leases import TTL_MS, Lease, Pulse
from dispatcher.store.transaction import Transaction
from tests.unit.layers.scene import End, Opened, Store

NAME = ("leader", "sweep")
WORK = b"work"
OWNERS = st.sampled_from(["ada", "bob", "eve"])
ENDS = st.sampled_from(End)


def renewed(store: Store, *owners: str) -> None:
    for owner in owners:
        store.run(lambda tr, owner=owner: leases.renew(tr, owner, 1))  # type: ignore[misc]


def acquired(store: Store, owner: str) -> Lease:
    lease = store.run(lambda tr: leases.acquire(tr, NAME, owner))
    assert lease is not None
    return lease


def work(tr: Transaction, lease: Lease) -> None:
    leases.check(tr, lease)
    tr.set(WORK, b"%s %d" % (lease.owner.encode(), lease.epoch))


def test_a_free_lease_is_acquired_once_however_the_commit_ends(store: Store, end: End) -> None:
    renewed(store, "ada", "bob")

    lease = store.run(lambda tr: leases.acquire(tr, NAME, "ada"), end)

    assert lease == Lease(NAME, "ada", 1)
    assert store.run(lambda tr: leases.acquire(tr, NAME, "bob")) is None


def test_who_does_not_live_acquires_nothing(store: Store) -> None:
    with pytest.raises(LostLease):
        store.run(lambda tr: leases.acquire(tr, NAME, "ada"))

    assert store.written() == []


def test_released_lease_has_a_higher_epoch_next_time_and_nobody_to_evict(store: Store, end: End) -> None:
    renewed(store, "ada", "bob")
    first = acquired(store, "ada")

    store.run(lambda tr: leases.release(tr, first), end)

    assert acquired(store, "bob") == Lease(NAME, "bob", 2, previous="")


def test_only_the_lease_that_is_held_is_released(store: Store) -> None:
    renewed(store, "ada", "bob")
    first = acquired(store, "ada")
    store.run(lambda tr: leases.release(tr, first))
    second = acquired(store, "bob")

    assert store.run(lambda tr: leases.release(tr, first)) is False
    assert acquired(store, "bob") == second


def test_a_beat_that_stood_still_frees_every_lease_of_its_owner(store: Store, end: End) -> None:
    renewed(store, "ada", "bob")
    acquired(store, "ada")
    store.run(lambda tr: leases.acquire(tr, ("shard", 3), "ada"))

    gone = store.run(lambda tr: leases.expire(tr, Pulse("ada", 1, TTL_MS, 0)), end)

    assert gone
    assert acquired(store, "bob").epoch == 2
    assert store.run(lambda tr: leases.acquire(tr, ("shard", 3), "bob")) == Lease(("shard", 3), "bob", 2, "ada")


def test_a_beat_that_moved_since_it_was_seen_expires_nobody(store: Store) -> None:
    renewed(store, "ada", "bob")
    acquired(store, "ada")
    store.run(lambda tr: leases.renew(tr, "ada", 2))

    assert store.run(lambda tr: leases.expire(tr, Pulse("ada", 1, TTL_MS, 0))) is False
    assert store.run(lambda tr: leases.acquire(tr, NAME, "bob")) is None


def test_an_owner_that_renews_meanwhile_keeps_its_leases(store: Store) -> None:
    renewed(store, "ada")
    expiring = store.begin()
    assert leases.expire(expiring.tr, Pulse("ada", 1, TTL_MS, 0))

    store.run(lambda tr: leases.renew(tr, "ada", 2))

    assert not expiring.commits()

    renewed(store, "ada", "bob")
    acquired(store, "ada")
    store.run(lambda tr: leases.expire(tr, Pulse("ada", 1, TTL_MS, 0)))
    taking = store.begin()
    assert leases.acquire(taking.tr, NAME, "bob") is not None

    store.run(lambda tr: leases.renew(tr, "ada", 2))

    assert not taking.commits()
    assert store.run(lambda tr: leases.acquire(tr, NAME, "bob")) is None


def test_a_former_owner_paused_inside_a_transaction_or_between_two_is_refused(store: Store) -> None:
    renewed(store, "ada", "bob")
    lost = acquired(store, "ada")
    paused = store.begin()
    work(paused.tr, lost)
    store.run(lambda tr: leases.leave(tr, "ada"))
    acquired(store, "bob")

    with pytest.raises(LostLease) as raised:
        store.run(lambda tr: work(tr, lost))

    assert raised.value.facts["owner_now"] == "bob"
    assert not raised.value.retryable
    assert not paused.commits()
    assert WORK not in store.disk.values


def test_renewing_does_not_disturb_the_work(store: Store) -> None:
    renewed(store, "ada")
    lease = acquired(store, "ada")
    working = store.begin()
    work(working.tr, lease)

    store.run(lambda tr: leases.renew(tr, "ada", 2))

    assert working.commits()


def test_an_observer_counts_only_the_time_for_which_it_saw_a_beat_stand_still() -> None:
    pulses: dict[str, Pulse] = {}

    for now_ms in range(0, TTL_MS, 100):
        pulses = leases.look(pulses, {"ada": 7}, now_ms=1_000_000 + now_ms)
        assert not pulses["ada"].has_lapsed()

    assert leases.look(pulses, {"ada": 7}, now_ms=1_000_000 + TTL_MS)["ada"].has_lapsed()

    seen = leases.look({}, {"ada": 7}, now_ms=0)
    seen = leases.look(seen, {"ada": 7}, now_ms=800)

    assert leases.look(seen, {"ada": 8}, now_ms=1_600)["ada"] == Pulse("ada", 8, 0, 1_600)

    seen = leases.look({}, {"ada": 7}, now_ms=0)

    after_a_pause = leases.look(seen, {"ada": 7}, now_ms=60_000)

    assert not after_a_pause["ada"].has_lapsed()

    seen = leases.look({}, {"ada": 7}, now_ms=5_000)

    assert leases.look(seen, {"ada": 7}, now_ms=0)["ada"].still_ms == 0


def test_the_leases_of_a_kind_are_read_in_order(store: Store) -> None:
    renewed(store, "ada")
    acquired(store, "ada")
    for shard in (2, 10, 1):
        store.run(lambda tr, shard=shard: leases.acquire(tr, ("shard", shard), "ada"))  # type: ignore[misc]

    found = store.run(lambda tr: leases.read_all(tr, "shard"))

    assert [lease.name for lease in found] == [("shard", 1), ("shard", 2), ("shard", 10)]


class Races(RuleBasedStateMachine):
    """One lease. What an owner believes to hold may be long lost; what it began may be held open for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.beats = {"ada": 0, "bob": 0, "eve": 0}
        self.believed: list[Lease] = []
        self.epochs: dict[int, str] = {}
        self.paused: list[tuple[Opened, Lease]] = []
        self.highest = 0

    @rule(owner=OWNERS, end=ENDS)
    def renew(self, owner: str, end: End) -> None:
        self.beats[owner] += 1
        self.store.run(lambda tr: leases.renew(tr, owner, self.beats[owner]), end)

    @rule(owner=OWNERS, end=ENDS)
    def acquire(self, owner: str, end: End) -> None:
        try:
            lease = self.store.run(lambda tr: leases.acquire(tr, NAME, owner), end)
        except LostLease:
            return
        if lease is None:
            return
        assert self.epochs.setdefault(lease.epoch, owner) == owner, "an epoch has one owner for ever"
        self.believed.append(lease)

    @rule(owner=OWNERS, behind=st.integers(0, 2), end=ENDS)
    def take_for_dead(self, owner: str, behind: int, end: End) -> None:
        """Rightly or wrongly, and on what may be an old pulse."""
        pulse = Pulse(owner, self.beats[owner] - behind, TTL_MS, 0)
        self.store.run(lambda tr: leases.expire(tr, pulse), end)

    @rule(data=st.data(), end=ENDS)
    @precondition(lambda self: self.believed)
    def release(self, data: st.DataObject, end: End) -> None:
        lease = data.draw(st.sampled_from(self.believed))
        self.store.run(lambda tr: leases.release(tr, lease), end)

    @rule(data=st.data(), end=ENDS)
    @precondition(lambda self: self.believed)
    def work(self, data: st.DataObject, end: End) -> None:
        lease = data.draw(st.sampled_from(self.believed))
        holder = self.holder()
        try:
            self.store.run(lambda tr: work(tr, lease), end)
        except LostLease:
            assert (holder.owner, holder.epoch) != (lease.owner, lease.epoch)
        else:
            assert (holder.owner, holder.epoch) == (lease.owner, lease.epoch)

    @rule(data=st.data())
    @precondition(lambda self: self.believed)
    def pause_inside_a_transaction(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.believed))
        opened = self.store.begin()
        try:
            work(opened.tr, lease)
        except LostLease:
            return
        self.paused.append((opened, lease))

    @rule(data=st.data())
    @precondition(lambda self: self.paused)
    def go_on_with_it(self, data: st.DataObject) -> None:
        opened, lease = self.paused.pop(data.draw(st.integers(0, len(self.paused) - 1)))
        holder = self.holder()
        if opened.commits():
            assert (holder.owner, holder.epoch) == (lease.owner, lease.epoch)

    @invariant()
    def the_epoch_never_goes_back(self) -> None:
        epoch = self.holder().epoch
        assert epoch >= self.highest
        self.highest = epoch

    def holder(self) -> Lease:
        return self.store.run(lambda tr: leases.read(tr, NAME))


TestRaces = Races.TestCase
