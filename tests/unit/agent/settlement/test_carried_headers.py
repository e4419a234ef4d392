"""What of a foreign message's headers goes with it through retries and into the dead letter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode

from coditect.broker.rabbitmq.connection.lenient import MAX_TABLE_BYTES
from coditect.wire import tasks
from coditect.wire.headers.foreign import foreign_headers

texts = st.text(st.characters(codec="utf-8"), max_size=40)


def test_plain_foreign_values_are_carried_on() -> None:
    plain = {"customer": "ada", "weight": 1.5, "count": 7, "urgent": True}

    assert foreign_headers(plain) == plain


@pytest.mark.parametrize("value", [b"bytes", [1], {"a": 1}, None, "x" * 5_000])
def test_what_is_not_plain_or_too_long_is_left_behind(value: object) -> None:
    assert foreign_headers({"odd": value, "plain": 1}) == {"plain": 1}


@pytest.mark.parametrize(
    "name", ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC", "BCC"]
)
def test_the_brokers_own_headers_are_never_carried_on(name: str) -> None:
    assert foreign_headers({name: "x"}, keep_ours=True) == {}


def test_our_headers_are_written_anew_on_a_retry_and_kept_in_a_dead_letter() -> None:
    headers = {tasks.DEADLINE: 5, "customer": "ada"}

    assert foreign_headers(headers) == {"customer": "ada"}
    assert foreign_headers(headers, keep_ours=True) == headers


def test_ours_are_kept_first_when_not_everything_fits() -> None:
    crowd = {f"h{number}": "x" * 4_000 for number in range(100)}

    kept = foreign_headers(crowd | {tasks.DEADLINE: 5}, keep_ours=True)

    assert kept[tasks.DEADLINE] == 5
    assert len(kept) == 5


@given(
    st.dictionaries(texts, st.one_of(texts, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(max_size=4_096)))
)
def test_what_is_carried_on_stays_far_below_what_a_message_may_have(headers: dict[str, Any]) -> None:
    kept = foreign_headers(headers, keep_ours=True)

    assert all(headers[name] == value for name, value in kept.items())
    assert sum(len(encode.encode_table_value(value)) for value in kept.values()) < MAX_TABLE_BYTES // 3
