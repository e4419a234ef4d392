"""The outbox: rows in the order of their numbers, and numbers that are never given twice."""

from __future__ import annotations

from dispatcher.ledger import outbox
from dispatcher.ledger.outbox import Row
from tests.unit.layers.scene import End, Store


def put(store: Store, *nodes: str, shard: int = 0, end: End = End.COMMITTED) -> list[int]:
    """As a batch does it: numbers from the last one on, then the count."""

    def body(tr: object) -> list[int]:
        last = outbox.last_number(tr, shard)  # type: ignore[arg-type]
        numbers = [last + node_key for node_key, _ in enumerate(nodes, 1)]
        for number, node in zip(numbers, nodes, strict=True):
            outbox.put(tr, shard, Row(number, "w", node, 1))  # type: ignore[arg-type]
        outbox.count(tr, shard, numbers[-1])  # type: ignore[arg-type]
        return numbers

    return store.run(body, end)


def waiting(store: Store, shard: int = 0) -> list[int]:
    return [row.publication for row in store.run(lambda tr: outbox.waiting(tr, shard))]


def test_rows_wait_in_the_order_of_their_numbers_in_each_shard(store: Store) -> None:
    assert put(store, "c", "a", "b") == [1, 2, 3]

    assert store.run(lambda tr: outbox.waiting(tr, 0, limit=2)) == [Row(1, "w", "c", 1), Row(2, "w", "a", 1)]
    assert store.run(lambda tr: outbox.waiting(tr, 0, after=2)) == [Row(3, "w", "b", 1)]

    put(store, "a")

    assert put(store, "a", shard=1) == [1]
    assert waiting(store, 1) == [1]
    assert store.run(lambda tr: outbox.last_number(tr, 2)) == 0


def test_a_number_is_not_given_again_when_its_row_is_gone(store: Store, end: End) -> None:
    put(store, "a", "b")
    store.run(lambda tr: outbox.clear(tr, 0, [1, 2]), end)
    store.run(lambda tr: outbox.clear(tr, 0, [1, 2]), end)

    assert waiting(store) == []
    assert put(store, "c") == [3]


def test_two_transactions_never_get_the_same_number(store: Store) -> None:
    one, other = store.begin(), store.begin()
    for opened, node in ((one, "a"), (other, "b")):
        number = outbox.last_number(opened.tr, 0) + 1
        outbox.put(opened.tr, 0, Row(number, "w", node, 1))
        outbox.count(opened.tr, 0, number)

    assert [one.commits(), other.commits()] == [True, False]
