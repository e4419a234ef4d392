"""Idempotency keys: the same key, the same workflow."""

from __future__ import annotations

import pytest

from dispatcher.ledger import answers, idempotency
from dispatcher.ledger.answers import ANSWER_RETENTION_MS
from dispatcher.ledger.errors import KeyReused, UnfitKey
from tests.unit.layers.scene import End, Store


def claim(store: Store, key: str, workflow: str, now_ms: int, end: End = End.COMMITTED) -> str:
    return store.run(lambda tr: idempotency.claim(tr, key, workflow, now_ms=now_ms, keep_ms=1_000), end)


def test_the_first_has_the_key_however_the_commit_ends(store: Store, end: End) -> None:
    assert claim(store, "release-42", "w1", 0, end) == "w1"
    assert claim(store, "release-42", "w2", 999) == "w1"


def test_an_expired_key_is_free_before_it_is_swept(store: Store, end: End) -> None:
    claim(store, "release-42", "w1", 0)

    assert claim(store, "release-42", "w2", 1_000, end) == "w2"
    assert store.run(lambda tr: idempotency.known(tr, "release-42", "", now_ms=1_999)) == "w2"
    assert store.run(lambda tr: idempotency.known(tr, "release-42", "", now_ms=2_000)) is None


def test_a_key_that_is_claimed_again_outlives_what_it_was_before(store: Store, end: End) -> None:
    claim(store, "release-42", "w1", 0)
    claim(store, "release-42", "w2", 1_000, end)

    assert store.run(lambda tr: idempotency.sweep(tr, now_ms=1_999)) == 0
    assert claim(store, "release-42", "w3", 1_999) == "w2"


def test_two_that_come_at_once_get_one_workflow(store: Store) -> None:
    one, other = store.begin(), store.begin()
    for opened, workflow in ((one, "w1"), (other, "w2")):
        assert idempotency.claim(opened.tr, "k", workflow, now_ms=0) == workflow

    assert [one.commits(), other.commits()] == [True, False]
    assert claim(store, "k", "w2", 0) == "w1"


def test_sweeping_removes_what_has_expired_and_nothing_else(store: Store, end: End) -> None:
    for number in range(5):
        claim(store, f"old-{number}", "w", 0)
    claim(store, "new", "w", 500)

    while store.run(lambda tr: idempotency.sweep(tr, now_ms=1_000, limit=2), end):
        pass

    assert len(store.written()) == 2
    assert claim(store, "new", "other", 1_000) == "w"


def test_a_key_that_is_kept_longer_survives_the_sweep(store: Store, end: End) -> None:
    claim(store, "k", "w", 0)

    store.run(lambda tr: idempotency.keep(tr, "k", "w", until_ms=5_000), end)
    store.run(lambda tr: idempotency.keep(tr, "k", "w", until_ms=2_000))

    assert store.run(lambda tr: idempotency.sweep(tr, now_ms=4_999)) == 0
    assert store.run(lambda tr: idempotency.sweep(tr, now_ms=5_000)) == 1
    assert store.written() == []


def test_only_its_own_workflow_keeps_a_key_and_without_a_fingerprint_it_is_any_request_s(store: Store) -> None:
    claim(store, "k", "w", 0)

    assert store.run(lambda tr: idempotency.keep(tr, "k", "other", until_ms=5_000)) is False
    assert store.run(lambda tr: idempotency.keep(tr, "unknown", "w", until_ms=5_000)) is False
    assert store.run(lambda tr: idempotency.keep(tr, "k", "w", until_ms=5_000)) is True

    assert store.run(lambda tr: idempotency.known(tr, "k", "b", now_ms=0)) == "w"


@pytest.mark.parametrize("key", ["", "x" * 1_001, "é" * 501, "\ud800"])
def test_a_key_that_does_not_fit_is_refused(store: Store, key: str) -> None:
    with pytest.raises(UnfitKey):
        claim(store, key, "w", 0)


def test_a_key_of_another_request_is_refused_as_long_as_the_key_is_kept(store: Store, end: End) -> None:
    def known(fingerprint: str, now_ms: int) -> str | None:
        return store.run(lambda tr: idempotency.known(tr, "k", fingerprint, now_ms=now_ms))

    store.run(lambda tr: idempotency.claim(tr, "k", "w", now_ms=0, keep_ms=1_000, fingerprint="a"), end)
    store.run(lambda tr: idempotency.keep(tr, "k", "w", until_ms=5_000), end)

    assert [known("a", 4_999), known("", 4_999), known("b", 5_000)] == ["w", "w", None]
    with pytest.raises(KeyReused, match="another request"):
        known("b", 4_999)


def put_answer(store: Store, identity: str, now_ms: int, end: End = End.COMMITTED, *, shard: int = 0) -> None:
    store.run(lambda tr: answers.put(tr, shard, identity, b"told " + identity.encode(), now_ms=now_ms), end)


def test_answer_is_that_of_the_request_and_its_shard_however_the_commit_ends(store: Store, end: End) -> None:
    put_answer(store, "one", 0, end)

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
        put_answer(store, f"old-{number}", 0, shard=number)
    put_answer(store, "new", 1)

    assert store.run(lambda tr: answers.sweep(tr, now_ms=ANSWER_RETENTION_MS - 1)) == 0
    assert store.run(lambda tr: answers.sweep(tr, now_ms=ANSWER_RETENTION_MS, limit=2)) == 2
    while store.run(lambda tr: answers.sweep(tr, now_ms=ANSWER_RETENTION_MS, limit=2), end):
        pass

    assert len(store.written()) == 2
    assert store.run(lambda tr: answers.read(tr, 0, "new")) == b"told new"


def test_sweep_that_finds_nothing_writes_nothing(store: Store) -> None:
    put_answer(store, "new", 1)
    opened = store.begin()

    assert answers.sweep(opened.tr, now_ms=ANSWER_RETENTION_MS) == 0
    assert opened.tr.size_bytes == 0
