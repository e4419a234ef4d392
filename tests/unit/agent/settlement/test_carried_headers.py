"""What of a foreign message's headers goes with it through retries and into the dead letter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode

from coditect.broker.rabbitmq.fields import MAX_TABLE_BYTES
from coditect.wire import tasks
from coditect.wire.headers import foreign_headers

texts = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.mark.parametrize("odd", [b"bytes", [1], {"a": 1}, None, "x" * 5_000])
@pytest.mark.parametrize(
    "brokers", ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC", "BCC"]
)
def test_plain_headers_are_carried_on_and_ours_into_a_dead_letter_alone(odd: object, brokers: str) -> None:
    headers = {"odd": odd, brokers: "x", tasks.DEADLINE: 5, "customer": "ada"}

    assert foreign_headers(headers) == {"customer": "ada"}
    assert foreign_headers(headers, keep_ours=True) == {"customer": "ada", tasks.DEADLINE: 5}


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
