from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.store.binding import load_binding
from dispatcher.store.keys import MOST_CHILDREN, Space
from dispatcher.store.tuples import Element

load_binding()  # takes out its import hook again, which an import by another would leave
Subspace = importlib.import_module("fdb.subspace_impl").Subspace

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(["", "\0", "a\0\0b", "\0\xff"])
INTEGERS = st.integers() | st.sampled_from([0, 1, 255, 256, 2**16, 2**63, 2**64 - 1, 2**64, -1, -256, -(2**64)])
ELEMENTS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.binary() | TEXT | INTEGERS | st.floats(allow_nan=False) | st.uuids(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
TUPLES = st.lists(ELEMENTS, max_size=5).map(tuple)


@given(TUPLES, TUPLES)
def test_keys_are_those_of_foundationdb(outer: tuple[Any, ...], inner: tuple[Any, ...]) -> None:
    ours, theirs = Space(outer), Subspace(outer)

    assert ours.prefix == theirs.key()
    assert ours.pack(inner) == theirs.pack(inner)
    assert ours.range(inner) == (theirs.range(inner).start, theirs.range(inner).stop)
    assert ours.unpack(ours.pack(inner)) == theirs.unpack(theirs.pack(inner))
    assert ours.contains(ours.pack(inner))


@given(st.lists(ELEMENTS, min_size=1, max_size=4))
def test_spaces_within_spaces_are_those_of_foundationdb(path: list[Any]) -> None:
    ours, theirs = Space(("root",)), Subspace(("root",))
    again = ours
    for name in path:
        ours, theirs, again = ours[name], theirs[name], again[name]

    assert ours.prefix == again.prefix == theirs.key()


@given(st.lists(st.tuples(TEXT, INTEGERS), min_size=2, max_size=8))
def test_keys_sort_as_their_tuples(tuples: list[tuple[str, int]]) -> None:
    space = Space(("s",))

    assert [space.unpack(key) for key in sorted(map(space.pack, tuples))] == sorted(
        tuples, key=lambda one: (one[0].encode(), one[1])
    )


def test_a_key_of_another_space_is_refused() -> None:
    with pytest.raises(ValueError, match="another space"):
        Space(("a",)).unpack(Space(("b",)).pack((1,)))


@given(st.binary(max_size=40))
def test_bytes_that_are_no_key_are_refused(written: bytes) -> None:
    try:
        elements = Space().unpack(written)
    except ValueError:
        return
    assert Space().unpack(Space().pack(elements)) == elements or "nan" in repr(elements)


def test_what_no_key_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="Unsupported"):
        Space().pack(({},))


def test_a_space_remembers_a_bounded_number_of_children() -> None:
    space = Space()

    for number in range(MOST_CHILDREN + 10):
        child = space[f"child-{number}"]

    assert len(space._children) <= MOST_CHILDREN
    assert space[f"child-{number}"] is child


def test_a_page_begins_behind_the_last_key_of_the_page_before() -> None:
    space = Space(("nodes",))
    keys = [space.pack((workflow, node)) for workflow in ("v", "w", "x") for node in ("a", "a\0", "b", "bb")]

    def page(*after: str) -> list[tuple[Element, ...]]:
        begin, end = space.behind(("w",), after)
        return [space.unpack(key) for key in keys if begin <= key < end]

    assert page() == page("") == [("w", "a"), ("w", "a\0"), ("w", "b"), ("w", "bb")]
    assert page("a") == [("w", "a\0"), ("w", "b"), ("w", "bb")]
    assert page("b") == [("w", "bb")]
    assert page("bb") == []
