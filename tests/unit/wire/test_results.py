from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.wire import tasks
from coditect.wire.json import dumps
from tests.unit.model.strategies import hostile_headers, outcomes


@given(outcomes())
def test_result_is_read_back_as_it_was_written(outcome: Outcome) -> None:
    message = tasks.result_message(outcome, capability="code.review")

    assert tasks.read_result(message) == outcome


@given(outcomes())
def test_result_without_a_correlation_id_is_correlated_by_its_task(outcome: Outcome) -> None:
    message = tasks.result_message(replace(outcome, correlation_id=None, task_id="task"), capability="a")

    assert message.correlation_id == "task"


@given(
    headers=hostile_headers,
    status=st.sampled_from([*Status, "unknown", "", 1, None, [], {}]),
    body=st.binary(max_size=40),
)
def test_hostile_reply_raises_nothing_but_invalid_task(headers: dict[str, Any], status: object, body: bytes) -> None:
    message = Message(body, headers | {tasks.STATUS: status})

    try:
        outcome = tasks.read_result(message)
    except InvalidTask:
        return

    assert (outcome.failure is None) == (outcome.status is Status.COMPLETED)


@pytest.mark.parametrize("body", [b"", b"[]", b'"text"', b"{", b"\xff"])
def test_failed_result_whose_body_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidTask):
        tasks.read_result(Message(body, {tasks.STATUS: "failed"}))


def test_failure_of_a_foreign_agent_may_say_as_little_as_it_likes() -> None:
    outcome = tasks.read_result(Message(b'{"message": 5}', {tasks.STATUS: "rejected"}))

    assert outcome.failure is not None
    assert (outcome.failure.message, outcome.failure.reason, outcome.failure.retryable) == ("5", "", False)


def test_words_of_a_failure_are_no_longer_than_a_row_of_the_ledger_bears() -> None:
    body = dumps({"reason": "r" * 200_000, "type": "T" * 200_000, "message": "m" * 200_000})

    failure = tasks.read_result(Message(body, {tasks.STATUS: "failed"})).failure

    assert failure is not None
    assert [len(text) for text in (failure.reason, failure.type, failure.message)] == [255, 255, 200_000]
