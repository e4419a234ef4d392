"""The published schema of a task and the code that reads one agree on every header."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from coditect.model.message import Message
from coditect.wire.tasks import read_task
from tests.integration.wire.schemas import complaints, schema
from tests.integration.wire.strategies import short_text

HEADERS: dict[str, Any] = schema("task")["properties"]["headers"]["properties"]
NUMBERS = sorted(name for name, one in HEADERS.items() if "anyOf" in one)
TEXTS = sorted(name for name, one in HEADERS.items() if "maxLength" in one and name != "x-coditect-errors")
LIMITS = [-(2**63), -1, 0, 1, 64, 65, 1_000, 1_001, 10_000, 10_001, 2**53, 2**53 + 1, 2**63 - 1]


def _fits(name: str, value: object) -> bool:
    # A workflow makes the other headers of an owner matter.
    return not complaints("task", {"headers": {"x-coditect-workflow": "w", name: value}, "body": {}})


def _is_read(name: str, value: object) -> bool:
    try:
        read_task(Message(b"{}", {"x-coditect-workflow": "w", name: value}), "code.review.p1")
    except InvalidTask:
        return False
    return True


def test_every_number_and_text_of_a_task_is_compared() -> None:
    special = {"CC", "x-coditect-capability", "x-coditect-errors", "x-coditect-claim", "x-coditect-sent-again"}

    assert len(NUMBERS) >= 10
    assert set(NUMBERS) | set(TEXTS) | special == set(HEADERS)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", LIMITS)
def test_number_fits_the_schema_exactly_if_it_is_read(name: str, value: int) -> None:
    assert _fits(name, value) == _is_read(name, value)


@given(st.sampled_from(NUMBERS), st.one_of(st.integers(), st.booleans(), st.lists(st.none()), st.just({})))
def test_value_of_a_number_fits_the_schema_exactly_if_it_is_read(name: str, value: object) -> None:
    assert _fits(name, value) == _is_read(name, value)


@given(st.sampled_from(NUMBERS), st.one_of(short_text(), st.from_regex(r"\A[0-9]{1,20}\Z")))
def test_text_that_is_read_as_a_number_fits_the_schema_but_for_digits_of_other_scripts(name: str, value: str) -> None:
    assert _fits(name, value) or not _is_read(name, value) or not value.isascii()


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("length", [0, 1, 128, 129, 255, 256, 1_024, 1_025])
def test_text_fits_the_schema_exactly_if_it_is_read(name: str, length: int) -> None:
    assert _fits(name, "x" * length) == _is_read(name, "x" * length)


@given(st.sampled_from(TEXTS), st.one_of(st.integers(), st.booleans(), st.lists(st.none()), st.just({})))
def test_value_that_is_no_text_neither_fits_the_schema_nor_is_read(name: str, value: object) -> None:
    assert not _fits(name, value)
    assert not _is_read(name, value)
