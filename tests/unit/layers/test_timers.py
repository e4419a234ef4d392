"""Timers: exactly the set that is due, in the order of time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dispatcher.ledger import timers
from dispatcher.ledger.timers import Timer
from tests.unit.layers.scene import End, Store

START = Timer("w", "n", "start", due_ms=1_000, fence=3)
WORKFLOWS = st.sampled_from(["w", "w\0x", "x"])
ENDS = st.sampled_from(End)
TIMERS = st.builds(
    Timer,
    workflow=WORKFLOWS,
    node=st.sampled_from(["", "n", "m"]),
    kind=st.sampled_from(["start", "beat"]),
    due_ms=st.integers(0, 300) | st.integers(2**40, 2**40 + 3),
    fence=st.integers(0, 2),
)


def shard_of(workflow: str) -> int:
    return len(workflow) % 2


def put(store: Store, timer: Timer, end: End = End.COMMITTED) -> None:
    store.run(lambda tr: timers.put(tr, 0, timer), end)


def test_a_timer_is_due_from_its_instant_on(store: Store, end: End) -> None:
    put(store, START, end)

    assert store.run(lambda tr: timers.due(tr, 0, 999)) == []
    assert store.run(lambda tr: timers.due(tr, 0, 1_000)) == [START]
    assert store.run(lambda tr: timers.due(tr, 1, 1_000)) == []
    assert store.run(lambda tr: timers.next_due_ms(tr, 0)) == 1_000


def test_a_cancelled_timer_leaves_nothing_behind(store: Store, end: End) -> None:
    put(store, START)

    store.run(lambda tr: timers.cancel(tr, "w", "n", "start"), end)

    assert store.written() == []
    assert store.run(lambda tr: timers.cancel(tr, "w", "n", "start")) is False
    assert store.run(lambda tr: timers.next_due_ms(tr, 0)) is None


def test_a_timer_is_finished_once_and_not_after_it_was_replaced(store: Store) -> None:
    put(store, START)

    assert store.run(lambda tr: timers.finish(tr, START))
    assert not store.run(lambda tr: timers.finish(tr, START))

    later = replace(START, due_ms=9_000)
    put(store, later)

    assert not store.run(lambda tr: timers.finish(tr, START))
    assert store.run(lambda tr: timers.read(tr, "w", "n", "start")) == later


def test_a_timer_cannot_be_finished_and_replaced_at_once(store: Store) -> None:
    put(store, START)
    finishing = store.begin()
    assert timers.finish(finishing.tr, START)

    put(store, replace(START, fence=4))

    assert not finishing.commits()


def test_the_timers_of_a_workflow_are_cancelled_in_pieces(store: Store) -> None:
    for node in "abcde":
        put(store, replace(START, node=node))
    other = replace(START, workflow="ww")
    put(store, other)

    assert [store.run(lambda tr: timers.cancel_all(tr, "w", limit=3)) for _ in range(3)] == [3, 2, 0]
    assert store.run(lambda tr: timers.due(tr, 0, 5_000)) == [other]


class Clock(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.model: dict[tuple[str, str, str], Timer] = {}

    @rule(timer=TIMERS, end=ENDS)
    def put(self, timer: Timer, end: End) -> None:
        self.store.run(lambda tr: timers.put(tr, shard_of(timer.workflow), timer), end)
        self.model[timer.workflow, timer.node, timer.kind] = timer

    @rule(timer=TIMERS, end=ENDS)
    def cancel(self, timer: Timer, end: End) -> None:
        node_key = (timer.workflow, timer.node, timer.kind)
        self.store.run(lambda tr: timers.cancel(tr, *node_key), end)
        self.model.pop(node_key, None)

    @rule(timer=TIMERS)
    def finish(self, timer: Timer) -> None:
        node_key = (timer.workflow, timer.node, timer.kind)
        assert self.store.run(lambda tr: timers.finish(tr, timer)) is (self.model.get(node_key) == timer)
        if self.model.get(node_key) == timer:
            del self.model[node_key]

    @rule(workflow=WORKFLOWS, end=ENDS)
    def cancel_all(self, workflow: str, end: End) -> None:
        self.store.run(lambda tr: timers.cancel_all(tr, workflow), end)
        self.model = {node_key: timer for node_key, timer in self.model.items() if node_key[0] != workflow}

    @rule(shard=st.integers(0, 2), now_ms=st.integers(0, 310) | st.just(2**41), limit=st.integers(1, 4))
    def look(self, shard: int, now_ms: int, limit: int) -> None:
        found = self.store.run(lambda tr: timers.due(tr, shard, now_ms, limit=limit))

        expected = [timer for timer in self.model.values() if shard_of(timer.workflow) == shard]
        expected.sort(key=lambda timer: (timer.due_ms, timer.workflow, timer.node, timer.kind))
        assert found == [timer for timer in expected if timer.due_ms <= now_ms][:limit]
        first = expected[0].due_ms if expected else None
        assert self.store.run(lambda tr: timers.next_due_ms(tr, shard)) == first

    @invariant()
    def every_timer_has_two_keys(self) -> None:
        assert len(self.store.written()) == 2 * len(self.model)


TestClock = Clock.TestCase
