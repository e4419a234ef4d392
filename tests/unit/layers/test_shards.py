"""Shards: fair shares, hand-over, take-over, and what the numbers promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import TTL_MS, Lease, Pulse
from dispatcher.ledger.ownership.shards import STEP_MS, plan, shard_of
from tests.unit.layers.scene import End, Store

COUNT = 16
MEMBERS = st.sets(st.sampled_from("abcdefg"), min_size=1)
TAKE_OVER_MS = 4_000
"""Promised; SQLite needs another 500 ms within it."""
SQLITE_MS = 500


def test_workflows_are_spread_over_the_shards_and_stay_where_they_are() -> None:
    assert [shard_of(f"workflow-{number}", 16) for number in range(6)] == [12, 11, 2, 0, 11, 1]

    found = [shard_of(f"workflow-{number}", 8) for number in range(8_000)]

    assert all(900 < found.count(shard) < 1_100 for shard in range(8))


def test_the_first_caller_decides_how_many_shards_there_are(store: Store, end: End) -> None:
    assert store.run(lambda tr: shards.fix_count(tr, 8), end) == 8
    assert store.run(lambda tr: shards.fix_count(tr, 32)) == 8


def test_callers_that_decide_at_once_have_one_number_of_shards(store: Store) -> None:
    one, other = store.begin(), store.begin()
    assert [shards.fix_count(one.tr, 8), shards.fix_count(other.tr, 32)] == [8, 32]

    assert [one.commits(), other.commits()] == [True, False]
    assert store.run(lambda tr: shards.fix_count(tr, 32)) == 8


def test_there_is_at_least_one_shard_and_only_the_living_plan(store: Store) -> None:
    with pytest.raises(ValueError, match="at least one"):
        store.run(lambda tr: shards.fix_count(tr, 0))

    with pytest.raises(ValueError, match="living"):
        plan({0: ""}, {"a"}, "b")


@given(alive=MEMBERS, owners=st.lists(st.sampled_from(["", *"abcdefghi"]), min_size=1, max_size=20))
def test_plans_of_all_who_live_fit_together(alive: set[str], owners: list[str]) -> None:
    before = dict(enumerate(owners))
    plans = {member: plan(before, alive, member) for member in alive}

    after = {shard: owner if owner in alive else "" for shard, owner in before.items()}
    for member, one in plans.items():
        assert all(after[shard] == member for shard in one.give)
        for shard in one.take:
            assert after[shard] == "", "taken by two, or not free"
            after[shard] = member
    for one in plans.values():
        after.update(dict.fromkeys(one.give, ""))

    shares = [sum(owner == member for owner in after.values()) for member in alive]
    share, larger = divmod(len(owners), len(alive))
    assert max(shares) <= share + bool(larger)
    assert not all(after.values()) or max(shares) - min(shares) <= 1


@given(alive=MEMBERS, count=st.integers(1, 20))
def test_a_fair_share_is_left_as_it_is(alive: set[str], count: int) -> None:
    members = sorted(alive, reverse=True)
    owners = {shard: members[shard % len(members)] for shard in range(count)}

    assert all(plan(owners, alive, member) == shards.SharePlan((), ()) for member in alive)


def test_the_first_dispatcher_takes_everything_in_its_first_step(store: Store, end: End) -> None:
    step = store.run(lambda tr: shards.step(tr, "a", 1, count=COUNT), end)

    assert [lease.name[1] for lease in step.owned] == list(range(COUNT))
    assert store.run(lambda tr: shards.step(tr, "a", 2, count=COUNT)).owned == step.owned


def test_a_joiner_has_its_share_after_three_steps_and_a_leaver_s_shards_have_moved_within_a_second() -> None:
    fleet = Fleet(COUNT)
    fleet.join("a")
    fleet.pass_time(STEP_MS)
    fleet.join("b")
    fleet.pass_time(3 * STEP_MS)
    assert fleet.shares() == {"a": 8, "b": 8}

    fleet.join("c")
    fleet.pass_time(10 * STEP_MS)
    fleet.leave("b")
    fleet.pass_time(1_000)
    assert fleet.shares() == {"a": 8, "c": 8}


def fleet_of_two() -> Fleet:
    """Dispatchers `a` and `b`, which have their shares."""
    fleet = Fleet(COUNT)
    for name in "ab":
        fleet.join(name)
        fleet.pass_time(10 * STEP_MS)
    return fleet


@pytest.mark.parametrize("offset_ms", range(0, STEP_MS, 50))
def test_a_killed_dispatcher_s_shards_have_moved_in_less_than_four_seconds(offset_ms: int) -> None:
    fleet = Fleet(COUNT)
    for name in "abc":
        fleet.join(name)
        fleet.pass_time(130)
    fleet.pass_time(10 * STEP_MS + offset_ms)

    fleet.kill("b")
    fleet.pass_time(TAKE_OVER_MS - SQLITE_MS)

    assert fleet.shares() == {"a": 8, "c": 8}


def test_a_dispatcher_that_misses_five_beats_keeps_its_shards() -> None:
    fleet = fleet_of_two()
    before = fleet.leases("a")

    fleet.pause("a")
    fleet.pass_time(5 * STEP_MS)
    fleet.go_on("a")
    fleet.pass_time(10 * STEP_MS)

    assert fleet.leases("a") == before


def test_a_paused_dispatcher_s_shards_move_and_it_gets_a_share_again_later() -> None:
    fleet = fleet_of_two()
    lost = fleet.leases("a")

    fleet.pause("a")
    fleet.pass_time(TAKE_OVER_MS)
    assert fleet.shares() == {"b": COUNT}
    fleet.go_on("a")

    for lease in lost:
        with pytest.raises(LostLease):
            fleet.store.run(lambda tr, lease=lease: leases.check(tr, lease))  # type: ignore[misc]
    fleet.pass_time(4 * STEP_MS)
    assert fleet.shares() == {"a": 8, "b": 8}
    assert all(lease.epoch > 1 and not lease.previous for lease in fleet.leases("a"))


def test_a_store_that_stood_still_for_all_costs_nobody_a_shard() -> None:
    fleet = fleet_of_two()
    before = {name: fleet.leases(name) for name in "ab"}

    for name in "ab":
        fleet.pause(name)
    fleet.pass_time(10 * TTL_MS)
    for name in "ab":
        fleet.go_on(name)
    fleet.pass_time(10 * STEP_MS)

    assert {name: fleet.leases(name) for name in "ab"} == before


def test_owners_are_told_for_every_shard(store: Store) -> None:
    store.run(lambda tr: shards.step(tr, "a", 1, count=2))

    assert store.run(lambda tr: shards.owners(tr, 2)) == {0: "a", 1: "a"}
    assert Store().run(lambda tr: shards.owners(tr, 2)) == {0: "", 1: ""}


SHARDS_OF_MACHINE = 5
ENDS = st.sampled_from(End)


class Shards(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(SHARDS_OF_MACHINE)
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
            assert sum(shares) == SHARDS_OF_MACHINE
            assert max(shares) - min(shares) <= 1

    @invariant()
    def one_epoch_has_one_owner(self) -> None:
        for lease in self.held():
            assert self.epochs.setdefault((lease.name, lease.epoch), lease.owner) == lease.owner

    @invariant()
    def who_lost_a_lease_is_refused(self) -> None:
        held = {(lease.name, lease.epoch, lease.owner) for lease in self.held()}
        for (name, epoch), owner in list(self.epochs.items())[-2 * SHARDS_OF_MACHINE :]:
            lease = Lease(name, owner, epoch)
            try:
                self.fleet.store.run(lambda tr, lease=lease: leases.check(tr, lease))  # type: ignore[misc]
            except LostLease:
                assert (name, epoch, owner) not in held
            else:
                assert (name, epoch, owner) in held

    def held(self) -> list[Lease]:
        return [
            lease for lease in self.fleet.store.run(lambda tr: leases.read_all(tr, shards.SHARD_LEASE)) if lease.owner
        ]


TestShards = Shards.TestCase
TestShards.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@dataclass(slots=True)
class Dispatcher:
    name: str
    clock_ms: int
    """What its clock shows more than the others'."""
    next_ms: int
    beat: int = 0
    paused: bool = False
    pulses: Mapping[str, Pulse] = field(default_factory=dict)


class Fleet:
    def __init__(self, count: int) -> None:
        self.store = Store()
        self.count = count
        self.now_ms = 0
        self.running: dict[str, Dispatcher] = {}

    def join(self, name: str) -> None:
        self.running[name] = Dispatcher(name, clock_ms=len(self.running) * 1_000_000, next_ms=self.now_ms)

    def leave(self, name: str) -> None:
        del self.running[name]
        self.store.run(lambda tr: shards.leave(tr, name))

    def kill(self, name: str) -> None:
        del self.running[name]

    def pause(self, name: str) -> None:
        self.running[name].paused = True

    def go_on(self, name: str) -> None:
        self.running[name].paused = False
        self.running[name].next_ms = self.now_ms

    def pass_time(self, milliseconds: int) -> None:
        end_ms = self.now_ms + milliseconds
        while awake := [one for one in self.running.values() if not one.paused and one.next_ms <= end_ms]:
            first = min(awake, key=lambda one: one.next_ms)
            self.now_ms = first.next_ms
            self.step(first.name)
        self.now_ms = end_ms

    def step(self, name: str, end: End = End.COMMITTED) -> None:
        one = self.running[name]
        one.beat += 1
        one.next_ms = self.now_ms + shards.STEP_MS
        step = self.store.run(
            lambda tr: shards.step(tr, name, one.beat, count=self.count, pulses=one.pulses.values()), end
        )
        one.pulses = leases.look(one.pulses, step.beats, now_ms=self.now_ms + one.clock_ms)

    def leases(self, name: str) -> list[Lease]:
        return [
            lease for lease in self.store.run(lambda tr: leases.read_all(tr, shards.SHARD_LEASE)) if lease.owner == name
        ]

    def shares(self) -> dict[str, int]:
        """How many shards each owner has that may work; nobody else's."""
        alive = self.store.run(leases.beats)
        owners = list(self.store.run(lambda tr: shards.owners(tr, self.count)).values())
        return {name: owners.count(name) for name in sorted(set(owners) & alive.keys())}
