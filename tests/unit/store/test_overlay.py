"""What was written and nobody else sees: over the pairs below, and taken back whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.store.overlay import Overlay

KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
PUTS = st.lists(st.tuples(KEYS, st.none() | st.sampled_from([b"1", b"2"])), max_size=8)


def _cluster_status(pairs: dict[bytes, bytes], puts: list[tuple[bytes, bytes | None]]) -> dict[bytes, bytes]:
    merged: dict[bytes, bytes | None] = {**pairs, **dict(puts)}
    return {key: value for key, value in merged.items() if value is not None}


@given(
    pairs=st.dictionaries(KEYS, st.just(b"0")),
    puts=PUTS,
    ends=st.tuples(KEYS, KEYS),
    limit=st.integers(0, 3),
    reverse=st.booleans(),
)
def test_a_range_is_what_stands_over_the_pairs_below(
    pairs: dict[bytes, bytes],
    puts: list[tuple[bytes, bytes | None]],
    ends: tuple[bytes, bytes],
    limit: int,
    reverse: bool,
) -> None:
    begin, end = sorted(ends)
    overlay = Overlay()
    for key, value in puts:
        overlay.put(key, value)
    keys = overlay.between(begin, end)
    below = sorted(((key, value) for key, value in pairs.items() if begin <= key < end), reverse=reverse)
    most = limit + overlay.removed(keys) if limit else None

    found = overlay.over(below[:most], keys, limit=limit, reverse=reverse)

    expected = [(key, value) for key, value in _cluster_status(pairs, puts).items() if begin <= key < end]
    assert found == sorted(expected, reverse=reverse)[: limit or None]


@given(kept=PUTS, undone=PUTS)
def test_what_is_undone_was_never_put(
    kept: list[tuple[bytes, bytes | None]], undone: list[tuple[bytes, bytes | None]]
) -> None:
    overlay, alike = Overlay(), Overlay()
    for key, value in kept:
        overlay.put(key, value)
        alike.put(key, value)
    overlay.keep()
    for key, value in undone:
        overlay.put(key, value)
    assert overlay.changed == bool(undone)

    overlay.undo()

    assert overlay.values == alike.values
    assert overlay.between(b"", b"z") == alike.between(b"", b"z")
    assert not overlay.changed
