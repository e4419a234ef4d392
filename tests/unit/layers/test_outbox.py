"""The outbox: publication numbers that are never given twice, and the one up to which all are confirmed."""

from __future__ import annotations

from dispatcher.ledger import outbox
from dispatcher.ledger.outbox import Numbers
from tests.unit.layers.scene import End, Store


def test_each_shard_has_numbers_of_its_own(store: Store, end: End) -> None:
    store.run(lambda tr: outbox.record(tr, 0, Numbers(3, 2)), end)
    store.run(lambda tr: outbox.record(tr, 0, Numbers(3, 2)), end)

    assert store.run(lambda tr: outbox.numbers(tr, 0)) == Numbers(3, 2)
    assert store.run(lambda tr: outbox.numbers(tr, 1)) == Numbers()


def test_two_transactions_never_give_the_same_number(store: Store) -> None:
    one, other = store.begin(), store.begin()
    for opened in (one, other):
        outbox.record(opened.tr, 0, Numbers(outbox.numbers(opened.tr, 0).last + 1))

    assert [one.commits(), other.commits()] == [True, False]
