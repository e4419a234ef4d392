from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask, TooLarge
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.task import Limits, Owner, Task
from coditect.wire import routing
from coditect.wire import tasks as wire
from coditect.wire.routing import CAPABILITY
from tests.unit.model.strategies import hostile_headers, tasks


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
