"""Tasks and their results on the wire, and the published schema of a task."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask, TooLarge
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.model.task import Limits, Owner, Task
from coditect.wire import headers, routing
from coditect.wire import tasks as wire
from coditect.wire.headers import HISTORY_BYTES_LIMIT, MOST_ATTEMPTS, history_header, read_history
from coditect.wire.json import dumps, loads
from coditect.wire.routing import CAPABILITY
from coditect.wire.tasks import read_task
from tests.integration.wire.schemas import complaints, schema
from tests.integration.wire.strategies import short_text
from tests.unit.model.strategies import failed_attempts, hostile_headers, json_values, outcomes, tasks


@given(tasks)
def test_task_is_read_back_as_it_was_written_and_its_body_is_the_input_alone(task: Task) -> None:
    message = wire.task_message(task)

    assert wire.read_task(message, routing.key_of(task)) == task
    assert (message.body, message.type, message.message_id) == (task.body, "coditect.task.v1", task.id)


def test_task_of_defaults_sends_no_header() -> None:
    message = wire.task_message(Task("code.review", Priority.P1, b"{}", TaskId("id")))

    assert dict(message.headers) == {}


def test_every_header_has_its_documented_name() -> None:
    task = Task(
        "code.review",
        Priority.P0,
        b"{}",
        limits=Limits(deadline_ms=1, start_by_ms=2, timeout_ms=3, max_attempts=4, only=AgentId("a-1")),
        attempt=5,
        publication=6,
        redrive=7,
        depth=10,
        published_at_ms=8,
        errors=({"type": "E"},),
        owner=Owner("w", "n", "o", 9),
        traceparent="tp",
        tracestate="ts",
    )

    assert dict(wire.task_message(task).headers) == {
        "x-coditect-deadline": 1,
        "x-coditect-start-by": 2,
        "x-coditect-timeout-ms": 3,
        "x-coditect-max-attempts": 4,
        "x-coditect-only": "a-1",
        "x-coditect-attempt": 5,
        "x-coditect-publication": 6,
        "x-coditect-redrive": 7,
        "x-coditect-depth": 10,
        "x-coditect-published-at": 8,
        "x-coditect-errors": '[{"type":"E"}]',
        "x-coditect-workflow": "w",
        "x-coditect-node": "n",
        "x-coditect-origin": "o",
        "x-coditect-fence": 9,
        "traceparent": "tp",
        "tracestate": "ts",
    }


def test_bare_message_is_a_task_of_defaults() -> None:
    task = wire.read_task(Message(b"1", content_type=None), "code.review")

    assert task == Task("code.review", Priority.P1, b"1")
    assert task.execution_key is None


def test_empty_message_id_is_no_identity() -> None:
    task = wire.read_task(Message(b"1", message_id=""), "code.review.p0")

    assert task.id is None


@given(
    headers=hostile_headers,
    key=st.text(max_size=30) | st.just("code.review.p1"),
    type_=st.text(max_size=20) | st.none(),
)
def test_hostile_headers_raise_nothing_but_invalid_task(headers: dict[str, Any], key: str, type_: str | None) -> None:
    try:
        task = wire.read_task(Message(b"{}", headers, type=type_), key)
    except InvalidTask:
        return

    assert 1 <= task.attempt <= 10_000
    assert task.limits.max_attempts is None or 1 <= task.limits.max_attempts <= 1_000


@pytest.mark.parametrize("text", ["7", "\u0667"], ids=["ascii", "arabic"])
def test_number_sent_as_text_is_read_as_a_number(text: str) -> None:
    task = wire.read_task(Message(b"{}", {wire.ATTEMPT: text}), "a.p1")

    assert task.attempt == 7


@pytest.mark.parametrize("value", [True, 0, -1, 10_001, 1.0, "²", "", "1 ", "x", [1], {}, b"1", "9" * 17])
def test_counter_that_is_no_number_in_its_range_is_refused(value: object) -> None:
    with pytest.raises(InvalidTask) as caught:
        wire.read_task(Message(b"{}", {wire.ATTEMPT: value}), "a.p1")

    assert caught.value.facts["header"] == wire.ATTEMPT


@pytest.mark.parametrize("text", ["{}", "1", "[", "null", "\ud800"])
def test_error_history_that_is_no_json_list_is_refused(text: str) -> None:
    with pytest.raises(InvalidTask):
        wire.read_task(Message(b"{}", {wire.ERRORS: text}), "a.p1")


def test_unknown_type_is_refused_and_named() -> None:
    with pytest.raises(InvalidTask) as caught:
        wire.read_task(Message(b"{}", type="celery.task"), "a.p1")

    assert caught.value.facts["type"] == "celery.task"


def test_body_at_the_limit_is_read_and_one_byte_more_is_too_large() -> None:
    at_limit = wire.read_task(Message(b"x" * wire.MAX_BODY_BYTES), "a.p1")

    assert len(at_limit.body) == wire.MAX_BODY_BYTES
    with pytest.raises(TooLarge):
        wire.read_task(Message(b"x" * (wire.MAX_BODY_BYTES + 1)), "a.p1")


def test_pinned_task_takes_its_capability_from_the_carbon_copy() -> None:
    headers = {CAPABILITY: "code.review", "CC": ["code.review.p0"]}

    task = wire.read_task(Message(b"{}", headers), "reviewer-0000aaaa")

    assert (task.capability, task.priority) == ("code.review", Priority.P0)


@pytest.mark.parametrize(
    "key", ["", "p1", ".p1", "Code.Review.p1", "code..review.p1", "a b", "#", "x" * 101, "a.p0.p1"]
)
def test_key_that_names_no_capability_is_refused(key: str) -> None:
    with pytest.raises(InvalidTask):
        wire.read_task(Message(b"{}"), key)


@given(tasks.filter(lambda task: task.id is not None))
def test_retry_and_redrive_are_other_executions_of_the_same_task(task: Task) -> None:
    keys = {
        task.execution_key,
        replace(task, attempt=task.attempt + 1).execution_key,
        replace(task, redrive=task.redrive + 1).execution_key,
        replace(task, publication=task.publication + 1).execution_key,
        replace(task, capability=task.capability + ".b").execution_key,
        replace(task, body=task.body + b" ").execution_key,
    }

    assert len(keys) == 6


@given(outcomes())
def test_result_is_read_back_as_it_was_written(outcome: Outcome) -> None:
    message = wire.result_message(outcome, capability="code.review")

    assert wire.read_result(message) == outcome


@given(outcomes())
def test_result_without_a_correlation_id_is_correlated_by_its_task(outcome: Outcome) -> None:
    message = wire.result_message(replace(outcome, correlation_id=None, task_id="task"), capability="a")

    assert message.correlation_id == "task"


@given(
    headers=hostile_headers,
    status=st.sampled_from([*Status, "unknown", "", 1, None, [], {}]),
    body=st.binary(max_size=40),
)
def test_hostile_reply_raises_nothing_but_invalid_task(headers: dict[str, Any], status: object, body: bytes) -> None:
    message = Message(body, headers | {wire.STATUS: status})

    try:
        outcome = wire.read_result(message)
    except InvalidTask:
        return

    assert (outcome.failure is None) == (outcome.status is Status.COMPLETED)


@pytest.mark.parametrize("body", [b"", b"[]", b'"text"', b"{", b"\xff"])
def test_failed_result_whose_body_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidTask):
        wire.read_result(Message(body, {wire.STATUS: "failed"}))


def test_failure_of_a_foreign_agent_may_say_as_little_as_it_likes() -> None:
    outcome = wire.read_result(Message(b'{"message": 5}', {wire.STATUS: "rejected"}))

    assert outcome.failure is not None
    assert (outcome.failure.message, outcome.failure.reason, outcome.failure.retryable) == ("5", "", False)


def test_words_of_a_failure_are_no_longer_than_a_row_of_the_ledger_bears() -> None:
    body = dumps({"reason": "r" * 200_000, "type": "T" * 200_000, "message": "m" * 200_000})

    failure = wire.read_result(Message(body, {wire.STATUS: "failed"})).failure

    assert failure is not None
    assert [len(text) for text in (failure.reason, failure.type, failure.message)] == [255, 255, 200_000]


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
