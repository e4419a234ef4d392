"""Values of the model, and what a hostile publisher may send instead."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Limits, Owner, Task
from coditect.wire import tasks as wire
from coditect.wire.headers import HEADER_PREFIX
from coditect.wire.json import dumps

instants = st.integers(0, 2**53)
counts = st.integers(0, 10_000)
short_text = st.text(max_size=60)
words = st.from_regex(r"[a-z][a-z0-9_-]{0,7}", fullmatch=True).filter(lambda word: word not in set(Priority))
capabilities = st.lists(words, min_size=1, max_size=4).map(".".join)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | short_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_text, inner, max_size=3),
    max_leaves=8,
)
json_bodies = json_values.map(dumps)

limits = st.builds(
    Limits,
    deadline_ms=st.none() | instants,
    start_by_ms=st.none() | instants,
    timeout_ms=st.none() | st.integers(1, 2**53),
    max_attempts=st.none() | st.integers(1, 1_000),
    only=st.none() | words.map(AgentId),
)
owners = st.builds(Owner, workflow=short_text, node=short_text, origin=short_text, fence=instants)
failed_attempts = st.fixed_dictionaries(
    {},
    optional={
        "agent": short_text,
        "attempt": counts,
        "type": short_text,
        "message": short_text,
        "reason": short_text,
        "at_ms": instants,
    },
)
_any_tasks = st.builds(
    Task,
    capability=capabilities,
    priority=st.sampled_from(Priority),
    body=json_bodies,
    id=st.none() | st.text(min_size=1, max_size=60).map(TaskId),
    correlation_id=st.none() | short_text,
    reply_to=st.none() | short_text,
    limits=limits,
    attempt=st.integers(1, 10_000),
    publication=instants,
    redrive=counts,
    published_at_ms=st.none() | instants,
    errors=st.lists(failed_attempts, max_size=3).map(tuple),
    owner=st.none() | owners,
    traceparent=st.none() | st.text(max_size=128),
    tracestate=st.none() | short_text,
)
tasks = _any_tasks.map(lambda task: replace(task, owner=None) if task.reply_to else task)
"""Whoever wants an answer owns no task."""

failures = st.builds(
    Failure,
    reason=short_text,
    type=short_text,
    message=short_text,
    traceback=short_text,
    retryable=st.booleans(),
    fix=short_text,
)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    status = draw(st.sampled_from(Status))
    failure = None if status is Status.COMPLETED else draw(failures)
    task_id = draw(st.none() | short_text)
    return Outcome(
        status=status,
        body=draw(json_bodies) if failure is None else dumps(failure.as_json()),
        task_id=task_id,
        correlation_id=draw(st.text(min_size=1, max_size=60)),
        agent_id=draw(st.none() | st.text(min_size=1, max_size=60).map(AgentId)),
        attempt=draw(st.integers(1, 10_000)),
        fence=draw(st.none() | instants),
        started_at_ms=draw(st.none() | instants),
        finished_at_ms=draw(st.none() | instants),
        failure=failure,
    )


HEADER_NAMES = tuple(
    value
    for name, value in vars(wire).items()
    if name.isupper() and isinstance(value, str) and value.startswith(HEADER_PREFIX)
)
hostile_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(st.characters(), max_size=50)
    | st.sampled_from(["²", "\u0663", "-1", "0x10", "1e3", "\ud800", "9" * 30, "[", "[]", "{}", "[1", " 5"])
    | st.binary(max_size=20)
    | st.binary(max_size=20).map(bytearray)
    | st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
hostile_headers = st.dictionaries(
    st.sampled_from([*HEADER_NAMES, "CC", "BCC", "traceparent", "tracestate", "x-death"]) | st.text(max_size=10),
    hostile_values,
    max_size=6,
)
