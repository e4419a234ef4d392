"""Owners that live, pause, are taken for dead and come back, in any order: the rules that hold throughout."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.ownership.leases import TTL_MS, Lease, Pulse
from dispatcher.store.transaction import Transaction
from tests.unit.layers.scene import End, Opened, Store

OWNERS = st.sampled_from(["ada", "bob", "eve"])
ENDS = st.sampled_from(End)
NAME = ("shard", 0)
WORK = b"work"


def work(tr: Transaction, lease: Lease) -> None:
    leases.check(tr, lease)
    tr.set(WORK, b"%s %d" % (lease.owner.encode(), lease.epoch))


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
