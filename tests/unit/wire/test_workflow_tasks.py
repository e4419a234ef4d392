from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.model.task import Owner, Task
from coditect.wire import control, workflow_tasks
from coditect.wire import tasks as wire
from coditect.wire.control import Progress, Started, Verb
from coditect.wire.tasks import OutcomeReport
from coditect.wire.workflow_tasks import Claim, Verdict
from tests.unit.model.strategies import hostile_headers, instants, outcomes, owners, short_text, tasks

OWNER = Owner("flow", "build", "3", 9)


@given(outcomes(), owners, instants, short_text.filter(bool))
def test_result_of_a_workflow_task_is_read_back_as_it_was_written(
    outcome: Outcome, owner: Owner, publication: int, capability: str
) -> None:
    task_id = outcome.task_id or "flow:build"
    outcome = replace(outcome, task_id=task_id, correlation_id=task_id, fence=owner.fence)
    result = OutcomeReport(owner, publication, outcome, capability)

    message = wire.outcome_report_message(result, message_id="fresh")

    assert wire.read_outcome_report(message) == result
    assert (message.message_id, message.correlation_id) == ("fresh", task_id)


@given(hostile_headers, st.binary(max_size=40), st.sampled_from(["coditect.result.v1", "other", None]))
def test_hostile_result_raises_nothing_but_invalid_task(headers: dict[str, Any], body: bytes, kind: str | None) -> None:
    outcome = Outcome(Status.COMPLETED, b"1", TaskId("flow:build"), "flow:build")
    good = wire.outcome_report_message(OutcomeReport(OWNER, 1, outcome, "a.b"), message_id="m").headers
    try:
        result = wire.read_outcome_report(Message(body, {**good, **headers}, type=kind))
    except InvalidTask:
        return

    assert isinstance(result.owner.fence, int)


def test_result_of_a_task_that_nobody_owns_is_refused() -> None:
    with pytest.raises(InvalidTask, match="owner"):
        wire.read_outcome_report(Message(b"1", {wire.STATUS: "completed"}, type=wire.RESULT_TYPE))


@given(tasks)
def test_owner_of_a_message_is_that_of_its_task(task: Task) -> None:
    found = wire.owner_of(wire.task_message(task))

    assert found == (None if task.owner is None else (task.owner, task.publication))


@given(hostile_headers)
def test_owner_of_a_hostile_message_is_none_or_readable(headers: dict[str, Any]) -> None:
    found = wire.owner_of(Message(b"", headers))

    assert found is None or wire.WORKFLOW_HEADER in headers


@pytest.mark.parametrize(("reply_to", "owned"), [(None, True), ("", True), ("answers", False)])
def test_task_that_wants_an_answer_has_no_owner(reply_to: str | None, owned: bool) -> None:
    message = replace(wire.task_message(_task()), reply_to=reply_to)

    assert (wire.read_task(message, "a.b.p1").owner == OWNER) is owned
    assert (wire.owner_of(message) is not None) is owned


def _task() -> Task:
    return replace(wire.read_task(Message(b"1"), "a.b.p1"), id=TaskId("flow:build"), owner=OWNER)


shares = st.floats(0, 1)


@given(st.lists(st.builds(Started, short_text, short_text, instants, instants, short_text, instants, instants)))
def test_starts_are_read_back_as_they_were_written(started: list[Started]) -> None:
    assert control.read_started(control.started_message(started)) == started


@given(st.lists(st.builds(Progress, short_text, short_text, instants, shares, short_text, instants)))
def test_progress_is_read_back_as_it_was_written(progress: list[Progress]) -> None:
    assert control.read_progress(control.progress_message(progress)) == progress


@pytest.mark.parametrize("body", [b"", b"[1]", b"[[]]", b'[["w","n",1,"x","m",1]]', b'{"a":1}', b"\xff"])
def test_what_is_no_list_of_progress_or_starts_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidTask):
        control.read_progress(Message(body))
    with pytest.raises(InvalidTask):
        control.read_started(Message(body))


@given(st.builds(Claim, st.sampled_from(Verdict), instants, st.integers(1, 9), st.booleans()))
def test_claim_is_read_back_as_it_was_written(claim: Claim) -> None:
    assert Claim.read(claim.as_json()) == claim


@pytest.mark.parametrize("value", [None, 7, "run", [], {}, {"verdict": "perhaps", "fence": 1, "attempt": 1}])
def test_what_is_no_claim_is_refused(value: object) -> None:
    with pytest.raises(InvalidTask):
        Claim.read(value)


def test_question_of_a_claim_is_a_request_that_says_whose_it_is() -> None:
    body = workflow_tasks.claim_body(OWNER, publication=5, agent=AgentId("a-1"), running=True)
    message = control.request(Verb.CLAIM, body, reply_to="reply.a-1", correlation_id="q")

    assert control.read_request(message) == (Verb.CLAIM, body)
    assert (message.message_id, message.correlation_id, message.reply_to) == ("q", "q", "reply.a-1")
    assert body == {
        "workflow": "flow", "node": "build", "fence": 9, "publication": 5, "agent": "a-1", "running": True,
    }  # fmt: skip
