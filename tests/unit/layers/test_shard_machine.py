"""Dispatchers that join, leave, die, pause and go on at random: every shard has one owner at most, and a fair one."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import Lease
from tests.unit.layers.dispatchers import Fleet
from tests.unit.layers.scene import End

COUNT = 5
ENDS = st.sampled_from(End)


class Shards(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(COUNT)
        self.joined = 0
        self.epochs: dict[tuple[leases.Name, int], str] = {}

    @rule()
    @precondition(lambda self: len(self.fleet.running) < 7)
    def join(self) -> None:
        self.joined += 1
        self.fleet.join(f"d{self.joined}")

    @rule(data=st.data(), end=ENDS)
    @precondition(lambda self: self.fleet.running)
    def step(self, data: st.DataObject, end: End) -> None:
        name = data.draw(st.sampled_from(sorted(self.fleet.running)))
        self.fleet.step(name, end)

    @rule(data=st.data(), how=st.sampled_from(["leave", "kill", "pause", "go_on"]))
    @precondition(lambda self: self.fleet.running)
    def change(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.fleet.running)))
        getattr(self.fleet, how)(name)

    @rule(milliseconds=st.sampled_from([100, 1_000, 4_000]))
    def pass_time(self, milliseconds: int) -> None:
        self.fleet.pass_time(milliseconds)

    @rule()
    def settle_down(self) -> None:
        """Whatever happened, after a take-over all shards are owned, fairly, by those that run."""
        self.fleet.pass_time(6_000)

        running = sorted(name for name, one in self.fleet.running.items() if not one.paused)
        if running:
            shares = [self.fleet.shares().get(name, 0) for name in running]
            assert sum(shares) == COUNT
            assert max(shares) - min(shares) <= 1

    @invariant()
    def one_epoch_has_one_owner(self) -> None:
        for lease in self.held():
            assert self.epochs.setdefault((lease.name, lease.epoch), lease.owner) == lease.owner

    @invariant()
    def who_lost_a_lease_is_refused(self) -> None:
        held = {(lease.name, lease.epoch, lease.owner) for lease in self.held()}
        for (name, epoch), owner in list(self.epochs.items())[-2 * COUNT :]:
            lease = Lease(name, owner, epoch)
            try:
                self.fleet.store.run(lambda tr, lease=lease: leases.check(tr, lease))  # type: ignore[misc]
            except LostLease:
                assert (name, epoch, owner) not in held
            else:
                assert (name, epoch, owner) in held

    def held(self) -> list[Lease]:
        return [lease for lease in self.fleet.store.run(lambda tr: leases.read_all(tr, shards.KIND)) if lease.owner]


TestShards = Shards.TestCase
TestShards.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
