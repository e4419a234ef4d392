"""Results that travel together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Owner
from coditect.wire.json import dumps
from coditect.wire.tasks import OutcomeReport
from coditect.wire.workflow_tasks import (
    LONGEST_BYTES,
    RESULTS_TYPE,
    may_share,
    read_owners,
    read_results,
    results_message,
)

NUMBER = st.integers(0, 2**53 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)  # fmt: skip
ROW = ["flow", "build", 3, 12, 1, "flow:build", 5, 6, "work.do", True, {"n": 1}]


def result(node: str = "build", body: bytes = b"1", *, fence: int = 3, free: bool = False) -> OutcomeReport:
    task = f"flow:{node}"
    outcome = Outcome(Status.COMPLETED, body, task, task, AgentId("adder-1"), 1, fence, 5, 6)
    return OutcomeReport(Owner("flow", node, "7", fence), 12, outcome, "work.do", free)


@given(st.lists(st.tuples(JSON, NUMBER, st.booleans()), min_size=1, max_size=5))
def test_results_are_read_back_as_they_were_written(given: list[tuple[Any, int, bool]]) -> None:
    results = [
        result(f"n{number}", dumps(value), fence=fence, free=free) for number, (value, fence, free) in enumerate(given)
    ]

    message = results_message(results, message_id="fresh")

    assert read_results(message, "7") == results
    assert read_owners(message, "7") == [(one.owner, 12) for one in results]
    assert (message.type, message.message_id, message.app_id) == (RESULTS_TYPE, "fresh", "adder-1")


@pytest.mark.parametrize(
    "other",
    [
        replace(result(), outcome=replace(result().outcome, retry_ms=5)),
        replace(result(), owner=Owner("flow", "build", "7", 9)),
        result(body=b"x" * (LONGEST_BYTES + 1)),
        replace(result(), outcome=replace(result().outcome, status=Status.FAILED, failure=Failure("r", "T", "m"))),
        replace(result(), outcome=replace(result().outcome, claims=True)),
        replace(result(), outcome=replace(result().outcome, correlation_id="another")),
        replace(result(), outcome=replace(result().outcome, finished_at_ms=None)),
    ],
    ids=["retry", "joined", "long", "failed", "claims", "correlation", "no time"],
)
def test_only_a_plain_small_value_travels_with_others(other: OutcomeReport) -> None:
    assert may_share(result())
    assert not may_share(other)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 1), (1, "x" * 256), (2, -1), (2, True), (3, 2**53), (3, None), (4, "1"), (5, None), (6, 1.5), (8, [])],
)
def test_a_row_that_is_wrong_is_refused_and_says_whose_it_is_if_it_can(at: int, value: object) -> None:
    wrong = [*ROW[:at], value, *ROW[at + 1 :]]
    message = Message(dumps([ROW, wrong]), type=RESULTS_TYPE)

    with pytest.raises(InvalidTask, match="no list of results"):
        read_results(message, "7")

    assert len(read_owners(message, "7")) == (1 if at < 4 else 2)


@given(st.binary(max_size=40) | JSON.map(dumps))
def test_what_is_hostile_raises_nothing_but_invalid_task(body: bytes) -> None:
    message = Message(body, type=RESULTS_TYPE)
    read_owners(message, "7")
    try:
        read_results(message, "7")
    except InvalidTask:
        return

    assert body.strip()[:1] in (b"[", b"{", b'"')
