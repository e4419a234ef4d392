"""Answers: the same request is told the same for a day."""

from __future__ import annotations

from dispatcher.ledger import answers
from dispatcher.ledger.answers import KEEP_MS
from tests.unit.layers.scene import End, Store


def put(store: Store, identity: str, now_ms: int, end: End = End.COMMITTED, *, shard: int = 0) -> None:
    store.run(lambda tr: answers.put(tr, shard, identity, b"told " + identity.encode(), now_ms=now_ms), end)


def test_answer_is_that_of_the_request_and_its_shard_however_the_commit_ends(store: Store, end: End) -> None:
    put(store, "one", 0, end)

    assert store.run(lambda tr: answers.read(tr, 0, "one")) == b"told one"
    assert store.run(lambda tr: answers.read(tr, 0, "two")) is None
    assert store.run(lambda tr: answers.read(tr, 1, "one")) is None


def test_two_that_come_at_once_are_one_request(store: Store) -> None:
    one, other = store.begin(), store.begin()
    for opened in (one, other):
        assert answers.read(opened.tr, 0, "same") is None
        answers.put(opened.tr, 0, "same", b"told", now_ms=0)

    assert [one.commits(), other.commits()] == [True, False]


def test_sweeping_removes_what_is_a_day_old_in_pages_and_nothing_else(store: Store, end: End) -> None:
    for number in range(5):
        put(store, f"old-{number}", 0, shard=number)
    put(store, "new", 1)

    assert store.run(lambda tr: answers.sweep(tr, now_ms=KEEP_MS - 1)) == 0
    assert store.run(lambda tr: answers.sweep(tr, now_ms=KEEP_MS, limit=2)) == 2
    while store.run(lambda tr: answers.sweep(tr, now_ms=KEEP_MS, limit=2), end):
        pass

    assert len(store.written()) == 2
    assert store.run(lambda tr: answers.read(tr, 0, "new")) == b"told new"


def test_sweep_that_finds_nothing_writes_nothing(store: Store) -> None:
    put(store, "new", 1)
    opened = store.begin()

    assert answers.sweep(opened.tr, now_ms=KEEP_MS) == 0
    assert opened.tr.size_bytes == 0
