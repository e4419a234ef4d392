"""The example of a capability's input is taken by the very type that the schema was made from."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from typing import Annotated, Any, Literal, Union

import jsonschema
import pytest
from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, create_model

from coditect.cli.capability import Example


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Gt(8), Lt(10)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Tree(BaseModel):
    name: str
    parent: Tree | None
    children: list[Tree]


def example_is_taken(kind: Any) -> Any:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    example = Example(schema)
    jsonschema.validate(example.body, schema)
    adapter.validate_json(json.dumps(example.body))
    assert example.unsure == []
    return example.body


def numbers(kind: type) -> st.SearchStrategy[Any]:
    return st.integers(-1_000, 1_000).flatmap(
        lambda low: st.sampled_from([
            Annotated[kind, Ge(low), Le(low + 3)],
            Annotated[kind, Gt(low), Lt(low + 2)],
            Annotated[kind, Le(low)],
            Annotated[kind, Gt(low), MultipleOf(7)],
        ])
    )  # fmt: skip


texts = st.builds(lambda least, more: Annotated[str, Len(least, least + more)], st.integers(0, 30), st.integers(0, 10))
plain = st.sampled_from([
    str, int, float, bool, None, Any, Colour, Literal["a", 2], datetime.datetime, datetime.date, datetime.time,
    datetime.timedelta, uuid.UUID, Tree, Annotated[Cat | Dog, Field(discriminator="kind")], Dog,
    Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")], Annotated[str, StringConstraints(pattern=r"^\d+\.\d+")],
])  # fmt: skip


def composed(kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(st.sampled_from("abcd"), st.tuples(kinds, st.booleans()), max_size=4)
    return st.one_of(
        st.builds(lambda kind, least: Annotated[list[kind], Len(least)], kinds, st.integers(0, 3)),  # type: ignore[valid-type]
        st.builds(lambda kind, least: Annotated[dict[str, kind], Len(least)], kinds, st.integers(0, 3)),  # type: ignore[valid-type]
        st.builds(lambda one, two: tuple[one, two], kinds, kinds),  # type: ignore[valid-type]
        st.builds(lambda one: Union[one, None, int], kinds),  # noqa: UP007 - not every value here knows `|`
        st.sampled_from([Annotated[set[int], Len(3)], Annotated[frozenset[str], Len(2)], set[Colour]]),
        st.builds(
            lambda given: create_model(  # type: ignore[call-overload]
                "Made", **{name: (kind, Field(...) if required else None) for name, (kind, required) in given.items()}
            ),
            fields,
        ),
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(plain | texts | numbers(int) | numbers(float), composed, max_leaves=6))
def test_example_of_any_type_is_valid_input_for_it(kind: Any) -> None:
    example_is_taken(kind)


def test_example_has_the_required_fields_and_the_authors_own_values() -> None:
    class Review(BaseModel):
        path: Annotated[str, Field(examples=["src"])]
        depth: Annotated[int, Ge(2)]
        note: str = ""

    assert example_is_taken(Review) == {"path": "src", "depth": 2}


def test_what_requires_itself_is_shown_once() -> None:
    assert example_is_taken(Tree) == {"name": "text", "parent": None, "children": []}


@pytest.mark.parametrize("pattern", [r"^[a-f]{7}$", r"^\p{L}(?<=x)", "^(a+)+b$"])
def test_text_that_cannot_be_made_is_named_with_its_pattern(pattern: str) -> None:
    example = Example(
        {
            "type": "object",
            "required": ["sku"],
            "properties": {"sku": {"type": "string", "pattern": pattern, "minLength": 30}},
        }
    )

    assert example.unsure == [f"body.sku: a text that matches {pattern}"]
