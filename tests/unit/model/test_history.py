"""The failed attempts that travel with a task: bounded when they are read, so they can always be written again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from coditect.wire import headers
from coditect.wire.headers import HISTORY_BYTES_LIMIT, MOST_ATTEMPTS, history_header, read_history
from coditect.wire.json import dumps, loads
from tests.unit.model.strategies import failed_attempts, json_values


def nested(levels: int) -> str:
    return '[{"type":"E","message":' + "[" * levels + "]" * levels + "}]"


@given(st.lists(st.text(max_size=3_000), max_size=12))
def test_latest_attempts_are_kept_within_the_bytes(messages: list[str]) -> None:
    attempts = tuple({"message": message} for message in messages)

    text = history_header(attempts)

    kept = loads(text.encode())
    assert len(text.encode()) <= HISTORY_BYTES_LIMIT
    assert kept == list(attempts[len(attempts) - len(kept) :])


def test_history_is_cut_by_bytes_not_by_characters_and_may_be_empty() -> None:
    text = history_header(tuple({"message": "☃" * 1_000} for _ in range(16)))

    assert len(text.encode()) <= HISTORY_BYTES_LIMIT
    assert 0 < len(loads(text.encode())) < 16

    assert history_header(({"message": "x" * 20_000},)) == "[]"


def test_each_attempt_is_written_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    def counted(one: Any) -> bytes:
        written.append(one)
        return dumps(one)

    monkeypatch.setattr(headers, "dumps", counted)

    kept = read_history("[" + ",".join(['{"type":"E"}'] * 2_400) + "]")
    history_header(kept)

    assert len(kept) == len(written) == MOST_ATTEMPTS


@pytest.mark.parametrize("levels", [1, 250, 400, 900])
def test_what_is_nested_is_left_out(levels: int) -> None:
    (kept,) = read_history(nested(levels))

    assert kept == {"type": "E"}
    assert history_header((kept,)) == '[{"type":"E"}]'


def test_text_that_is_no_json_is_said_of_the_header() -> None:
    with pytest.raises(InvalidTask) as caught:
        read_history("[")

    assert "header" in str(caught.value)
    assert "body" not in str(caught.value)


@given(
    st.lists(failed_attempts | st.dictionaries(st.sampled_from([*headers._KINDS, "more"]), json_values) | json_values)
)
def test_whatever_was_read_is_written_and_read_as_the_same(strange: list[Any]) -> None:
    text = json.dumps(strange)

    try:
        kept = read_history(text)
    except InvalidTask:
        assert len(text) > 2 * HISTORY_BYTES_LIMIT
        return

    again = read_history(history_header(kept))
    assert again == kept[len(kept) - len(again) :]
    assert len(again) == len(kept) or len(history_header(kept)) > HISTORY_BYTES_LIMIT // 2
