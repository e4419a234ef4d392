"""The outbox: numbers that grow and are never given twice, one row for each node at most."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dispatcher.layers import outbox
from dispatcher.layers.errors import StaleFence
from dispatcher.layers.outbox import Row
from dispatcher.store.errors import ValueTooLarge
from tests.unit.layers.scene import End, Store

ENDS = st.sampled_from(End)
SHARDS = 2


def put(store: Store, node: str, fence: int = 1, end: End = End.COMMITTED) -> int:
    return store.run(lambda tr: outbox.put(tr, 0, "w", node, fence=fence, message=b"%d" % fence), end)


def waiting(store: Store) -> list[int]:
    return [row.publication for row in store.run(lambda tr: outbox.waiting(tr, 0))]


def test_rows_wait_in_the_order_of_their_numbers(store: Store) -> None:
    assert [put(store, node) for node in "cab"] == [1, 2, 3]

    assert store.run(lambda tr: outbox.waiting(tr, 0, limit=2)) == [
        Row(1, "w", "c", 1, b"1"),
        Row(2, "w", "a", 1, b"1"),
    ]
    assert store.run(lambda tr: outbox.waiting(tr, 0, after=2)) == [Row(3, "w", "b", 1, b"1")]


def test_the_same_attempt_has_one_number_however_the_commit_ends(store: Store, end: End) -> None:
    assert put(store, "n", end=end) == 1
    assert waiting(store) == [1]


def test_an_attempt_that_was_published_and_cleared_is_not_published_by_a_repetition(store: Store) -> None:
    put(store, "n")
    store.run(lambda tr: outbox.clear(tr, 0, [1]))

    assert put(store, "n") == 1
    assert waiting(store) == []


def test_a_newer_attempt_replaces_the_row_of_the_older(store: Store, end: End) -> None:
    put(store, "n")

    assert put(store, "n", fence=2, end=end) == 2
    assert waiting(store) == [2]
    assert store.run(lambda tr: outbox.last_publication(tr, "w", "n")) == (2, 2)


def test_an_older_attempt_is_refused(store: Store) -> None:
    put(store, "n", fence=2)

    with pytest.raises(StaleFence):
        put(store, "n", fence=1)

    assert waiting(store) == [1]


def test_a_number_is_not_given_again_when_its_row_is_gone(store: Store, end: End) -> None:
    put(store, "a")
    put(store, "b")
    store.run(lambda tr: outbox.clear(tr, 0, [1, 2]), end)

    assert put(store, "c") == 3


def test_two_transactions_never_get_the_same_number(store: Store) -> None:
    one, other = store.begin(), store.begin()
    for opened, node in ((one, "a"), (other, "b")):
        assert outbox.put(opened.tr, 0, "w", node, fence=1, message=b"") == 1

    assert [one.commits(), other.commits()] == [True, False]


def test_every_shard_counts_for_itself(store: Store) -> None:
    put(store, "a")

    assert store.run(lambda tr: outbox.put(tr, 1, "x", "a", fence=1, message=b"")) == 1
    assert store.run(lambda tr: outbox.last_number(tr, 0)) == 1
    assert store.run(lambda tr: outbox.last_number(tr, 2)) == 0


def test_a_successor_resends_under_new_numbers(store: Store, end: End) -> None:
    for node in "abc":
        put(store, node)
    mark = store.run(lambda tr: outbox.last_number(tr, 0))

    while store.run(lambda tr: outbox.renumber(tr, 0, up_to=mark, limit=2), end):
        pass

    assert [(row.publication, row.node, row.fence) for row in store.run(lambda tr: outbox.waiting(tr, 0))] == [
        (4, "a", 1),
        (5, "b", 1),
        (6, "c", 1),
    ]
    assert store.run(lambda tr: outbox.last_publication(tr, "w", "b")) == (1, 5)


def test_a_withdrawn_row_is_not_published(store: Store, end: End) -> None:
    put(store, "n")

    store.run(lambda tr: outbox.withdraw(tr, "w", "n"), end)

    assert waiting(store) == []
    assert store.run(lambda tr: outbox.withdraw(tr, "w", "n")) is False
    assert store.run(lambda tr: outbox.withdraw(tr, "w", "unknown")) is False
    assert store.run(lambda tr: outbox.last_publication(tr, "w", "unknown")) is None


def test_a_message_that_is_too_large_is_refused(store: Store) -> None:
    with pytest.raises(ValueTooLarge):
        store.run(lambda tr: outbox.put(tr, 0, "w", "n", fence=1, message=b"x" * 100_001))


class Posting(RuleBasedStateMachine):
    """Rows are put, confirmed, replaced and renumbered: what waits is what the model says, under new numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.fences: dict[tuple[int, str], int] = {}
        self.rows: dict[int, dict[str, int]] = {shard: {} for shard in range(SHARDS)}
        self.seen: dict[tuple[int, int], tuple[str, int]] = {}

    @rule(shard=st.integers(0, SHARDS - 1), node=st.sampled_from("abc"), newer=st.integers(0, 2), end=ENDS)
    def put(self, shard: int, node: str, newer: int, end: End) -> None:
        last = self.fences.get((shard, node), 0)
        fence = max(last + newer, 1)
        self.store.run(lambda tr: outbox.put(tr, shard, f"w{shard}", node, fence=fence, message=b""), end)
        if fence > last:
            self.fences[shard, node] = self.rows[shard][node] = fence

    @rule(shard=st.integers(0, SHARDS - 1), limit=st.integers(1, 3), end=ENDS)
    def confirm(self, shard: int, limit: int, end: End) -> None:
        rows = self.store.run(lambda tr: outbox.waiting(tr, shard, limit=limit))
        self.store.run(lambda tr: outbox.clear(tr, shard, [row.publication for row in rows]), end)
        for row in rows:
            del self.rows[shard][row.node]

    @rule(shard=st.integers(0, SHARDS - 1), limit=st.integers(1, 3), end=ENDS)
    def take_over(self, shard: int, limit: int, end: End) -> None:
        mark = self.store.run(lambda tr: outbox.last_number(tr, shard))
        while self.store.run(lambda tr: outbox.renumber(tr, shard, up_to=mark, limit=limit), end):
            pass
        assert all(row.publication > mark for row in self.store.run(lambda tr: outbox.waiting(tr, shard)))

    @invariant()
    def a_number_means_one_attempt_for_ever(self) -> None:
        for shard, rows in self.rows.items():
            found = self.store.run(lambda tr, shard=shard: outbox.waiting(tr, shard))  # type: ignore[misc]
            assert {row.node: row.fence for row in found} == rows
            for row in found:
                attempt = (row.node, row.fence)
                assert self.seen.setdefault((shard, row.publication), attempt) == attempt


TestPosting = Posting.TestCase
