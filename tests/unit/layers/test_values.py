"""Large values: in pieces, and never read otherwise than written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.ledger import values
from dispatcher.ledger.errors import DamagedValue, ValueBeyondBound
from dispatcher.ledger.keyspace import VALUES
from dispatcher.ledger.values import LARGEST_BYTES, VALUE_PIECE_BYTES, ValueKey
from dispatcher.store.limits import VALUE_BYTES
from tests.unit.layers.scene import End, Store

RESULT = ValueKey("w", "n", "result")
SIZES = (0, 1, VALUE_PIECE_BYTES - 1, VALUE_PIECE_BYTES, VALUE_PIECE_BYTES + 1, 3 * VALUE_PIECE_BYTES, LARGEST_BYTES)


def text(size: int) -> bytes:
    return (b"0123456789abcdef\0\xff." * (size // 19 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
def test_a_value_is_read_as_it_was_written(store: Store, size: int) -> None:
    store.run(lambda tr: values.put(tr, RESULT, text(size)))

    assert store.run(lambda tr: values.get(tr, RESULT)) == text(size)
    assert all(len(value) <= VALUE_BYTES for value in store.disk.values.values())


def test_a_value_is_replaced_whole_or_cleared_however_the_commit_ends(store: Store, end: End) -> None:
    store.run(lambda tr: values.put(tr, RESULT, text(4 * VALUE_PIECE_BYTES)))

    store.run(lambda tr: values.put(tr, RESULT, b"short"), end)

    assert store.run(lambda tr: values.get(tr, RESULT)) == b"short"
    assert len(store.written()) == 1

    store.run(lambda tr: values.put(tr, RESULT, text(2 * VALUE_PIECE_BYTES)))

    store.run(lambda tr: values.clear(tr, RESULT), end)

    assert store.written() == []
    assert store.run(lambda tr: values.get(tr, RESULT)) is None


def test_a_value_over_the_bound_is_refused(store: Store) -> None:
    with pytest.raises(ValueBeyondBound):
        store.run(lambda tr: values.put(tr, RESULT, text(LARGEST_BYTES + 1)))

    assert store.written() == []


@pytest.mark.parametrize("kind", ["result\0x", "resul", "results", ""])
def test_neighbours_do_not_meet(store: Store, kind: str) -> None:
    neighbour = ValueKey("w", "n", kind)
    store.run(lambda tr: values.put(tr, neighbour, b"neighbour"))
    store.run(lambda tr: values.put(tr, RESULT, text(2 * VALUE_PIECE_BYTES)))

    store.run(lambda tr: values.clear(tr, RESULT))

    assert store.run(lambda tr: values.get(tr, neighbour)) == b"neighbour"


@given(victim=st.integers(0, 2), how=st.sampled_from(["flip", "cut", "lose"]), at=st.integers(0, 10_000))
def test_any_damage_is_found(victim: int, how: str, at: int) -> None:
    store = Store()
    store.run(lambda tr: values.put(tr, RESULT, text(2 * VALUE_PIECE_BYTES + 10_001)))
    key = VALUES.pack((*RESULT.key, victim))
    before = store.disk.values[key]

    match how:
        case "flip":
            store.disk.values[key] = before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :]
        case "cut":
            store.disk.values[key] = before[:at]
        case "lose":
            store.run(lambda tr: tr.clear(key))

    with pytest.raises(DamagedValue) as raised:
        store.run(lambda tr: values.get(tr, RESULT))
    assert (raised.value.facts["workflow"], raised.value.facts["node"]) == ("w", "n")
