"""Claims, starts, progress and results of workflow tasks on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.broker.port import Delivery
from coditect.broker.topology import Binding, Queue, QueueType, Topology
from coditect.errors import InvalidTask
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Owner, Task
from coditect.wire import control, control_messages, routing, workflow_tasks
from coditect.wire import tasks as wire
from coditect.wire.control import Progress, Started, Verb
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import OutcomeReport
from coditect.wire.workflow_tasks import (
    LONGEST_BYTES,
    RESULTS_TYPE,
    Claim,
    HandoffOffer,
    Verdict,
    may_share,
    read_owners,
    read_results,
    results_message,
)
from tests.integration.wire.schemas import complaints, schema
from tests.owner import ScriptedOwner, granting
from tests.support import eventually
from tests.unit.agent.scene import Scene, open_scene
from tests.unit.agent.workflow_tasks.works import Works
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


NUMBER = st.integers(0, 2**53 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)  # fmt: skip
ROW = ["flow", "build", 3, 12, 1, "flow:build", 5, 6, "work.do", True, {"n": 1}]


def report(node: str = "build", body: bytes = b"1", *, fence: int = 3, free: bool = False) -> OutcomeReport:
    task = f"flow:{node}"
    outcome = Outcome(Status.COMPLETED, body, task, task, AgentId("adder-1"), 1, fence, 5, 6)
    return OutcomeReport(Owner("flow", node, "7", fence), 12, outcome, "work.do", free)


@given(st.lists(st.tuples(JSON, NUMBER, st.booleans()), min_size=1, max_size=5))
def test_results_are_read_back_as_they_were_written(given: list[tuple[Any, int, bool]]) -> None:
    results = [
        report(f"n{number}", dumps(value), fence=fence, free=free) for number, (value, fence, free) in enumerate(given)
    ]

    message = results_message(results, message_id="fresh")

    assert read_results(message, "7") == results
    assert read_owners(message, "7") == [(one.owner, 12) for one in results]
    assert (message.type, message.message_id, message.app_id) == (RESULTS_TYPE, "fresh", "adder-1")


@pytest.mark.parametrize(
    "other",
    [
        replace(report(), outcome=replace(report().outcome, retry_ms=5)),
        replace(report(), owner=Owner("flow", "build", "7", 9)),
        report(body=b"x" * (LONGEST_BYTES + 1)),
        replace(report(), outcome=replace(report().outcome, status=Status.FAILED, failure=Failure("r", "T", "m"))),
        replace(report(), outcome=replace(report().outcome, claims=True)),
        replace(report(), outcome=replace(report().outcome, correlation_id="another")),
        replace(report(), outcome=replace(report().outcome, finished_at_ms=None)),
    ],
    ids=["retry", "joined", "long", "failed", "claims", "correlation", "no time"],
)
def test_only_a_plain_small_value_travels_with_others(other: OutcomeReport) -> None:
    assert may_share(report())
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


KINDS = {
    "coditect.result.v1": "result",
    "coditect.results.v1": "results",
    "coditect.started.v1": "starts",
    "coditect.progress.v1": "progress",
    "coditect.control.v1": "claim",
}


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


def _as_json(message: Message) -> dict[str, object]:
    given = {name: getattr(message, name) for name in ("type", "message_id", "correlation_id", "reply_to", "app_id")}
    properties = {name: value for name, value in given.items() if value is not None}
    return {"properties": properties, "headers": dict(message.headers), "body": loads(message.body)}


async def test_everything_about_a_workflow_task_fits_its_schema(scene: Scene) -> None:
    owner, works = ScriptedOwner(await scene.broker(), clock=scene.clock), Works()
    owner.decide = granting(fence=3)
    await owner.open()
    heard: list[Message] = []
    tap = Queue("tap", QueueType.CLASSIC)
    bindings = tuple(Binding(exchange, "tap", "0") for exchange in (routing.RESULTS, routing.CONTROL))
    await owner.broker.declare(Topology(queues=(tap,), bindings=bindings))

    def listen(delivery: Delivery) -> None:
        heard.append(delivery.message)
        delivery.ack()

    await owner.broker.consume("tap", listen, prefetch=100)
    await scene.start(works.agent)

    await owner.publish("work.do", "fail", node="one")
    await owner.publish("work.do", "tell", node="two")
    await owner.publish("work.do", "quick", node="three", age_ms=5_000)
    await owner.publish("work.do", "quick", node="four")
    await owner.publish("work.do", "wait", node="five")
    await owner.publish("work.do", "wait", node="six")
    await eventually(lambda: owner.started and owner.progress)
    works.gate.set()
    await eventually(lambda: len(owner.results) == 6)

    assert {message.type for message in heard} == set(KINDS)
    assert [complaints(KINDS[str(one.type)], _as_json(one)) for one in heard] == [[]] * len(heard)
    described = schema("result")["properties"]["headers"]["properties"]
    assert {name for one in heard if one.type == "coditect.result.v1" for name in one.headers} <= set(described)


def test_offer_of_a_running_task_fits_its_schema_and_reads_back() -> None:
    offer = HandoffOffer("flow:one.1", "flow:one", "ticket.bill", "desk-00000001", "money", {"tried": []}, 1, "refund")
    message = control_messages.message(control_messages.HANDOFF, offer.as_json())

    assert complaints("letter", _as_json(message)) == []
    assert HandoffOffer.read(loads(message.body)) == offer
    strange: tuple[object, ...] = (None, [], {"handoff": "flow:one.1"})
    for wrong in strange:
        with pytest.raises(InvalidTask, match="offers no task"):
            HandoffOffer.read(wrong)


def test_cancel_of_a_workflow_task_fits_its_schema() -> None:
    assert complaints("letter", _as_json(control_messages.cancel("flow:one", reason="enough", publication=4))) == []
    assert complaints("letter", _as_json(control_messages.cancel("one", correlation_id="a" * 32))) == []
