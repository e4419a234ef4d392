"""Tasks and approvals under a policy, in the ledger: what goes on, what asks, what is refused, and the trail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from coditect.errors import InputError, NotFound
from coditect.wire.control import Verb
from coditect.workflow.approvals.file import read_policy
from coditect.workflow.approvals.policy import CapabilityFacts
from coditect.workflow.approvals.signing import signature
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.coordination.approvals import list_audit, show
from dispatcher.ledger.workflows.queries import approvals
from tests.unit.dispatcher.lone_ledger import Ledger, SlowStore, completed, failed

POLICY = b"""
rules:
  - {name: small, of: task, capability: deploy.*, when: "input.share <= `10`", risk: low, action: approve}
  - {name: never, of: task, capability: deploy.*, when: "input.share > `90`", risk: high, action: refuse}
  - {name: large, of: task, capability: deploy.*, risk: high, action: ask, timeout: 1h}
  - {name: dear, of: task, cost_above: 5, risk: medium, action: ask, timeout: 1h, on_timeout: grant}
  - {name: routine, of: approval, workflow: "routine*", risk: low, action: approve}
"""


@asynccontextmanager
async def opened(content: bytes = POLICY, **facts: CapabilityFacts) -> AsyncIterator[Ledger]:
    known = {"work": CapabilityFacts(frozenset(), 1.0), "deploy.release": CapabilityFacts(frozenset(), 1.0)} | facts
    policy = replace(read_policy(content), facts=known.get)
    async with SlowStore() as database:
        yield await Ledger.open(database, approvals=policy)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with opened() as ledger:
        yield ledger


async def trail(ledger: Ledger, **conditions: Any) -> list[tuple[str, str, str, str]]:
    told = await ledger.read(list_audit, workflow="w", **conditions)
    return [(one["node"], one["decision"], one["by"], one["rule"]) for one in told["entries"]]


def failures(ledger: Ledger) -> list[tuple[str, str]]:
    """The capabilities and reasons of the published failures, of which lessons are made."""
    notices = [one for one in ledger.notices if one.type == "attempt.failed"]
    return [(one.facts["capability"], one.facts["reason"]) for one in notices]


async def questions(ledger: Ledger) -> list[str]:
    told = await ledger.read(approvals)
    return [one["node"] for one in told["approvals"]]


async def answer(ledger: Ledger, node: str, *, granted: bool = True, by: str = "ada") -> Any:
    body = {"workflow": "w", "node": node, "granted": granted, "by": by, "comment": "looked at it"}
    return await ledger.ask(Verb.ANSWER, body)


def deploying(share: int, *, capability: str = "deploy.release") -> Any:
    flow = Workflow("ship")
    flow.task(capability, {"share": share}, name="ship")
    return flow.definition()


@pytest.mark.parametrize(
    ("name", "decisions"),
    [
        ("routine", [("gate", "granted", "policy", "routine")]),
        ("other", [("gate", "asked", "", "default"), ("gate", "granted", "ada", "default")]),
    ],
)
async def test_only_a_policy_answers_an_approval(ledger: Ledger, name: str, decisions: list[tuple[str, ...]]) -> None:
    flow = Workflow(name)
    flow.task("work", after=[flow.approval("Now?", name="gate")], name="then")
    await ledger.start(flow)
    if asked := await questions(ledger):
        await answer(ledger, "gate")
    await ledger.play(lambda _: completed())

    assert asked == (["gate"] if name == "other" else [])
    assert await ledger.state() is WorkflowState.COMPLETED
    assert await trail(ledger) == decisions


async def test_a_question_about_a_task_shows_the_input_that_is_approved(ledger: Ledger) -> None:
    flow = Workflow("ship")
    given = {"literal": {"share": 50}, "computed": {"share": flow.task("work", name="first").result}}
    for name, value in given.items():
        flow.task("deploy.release", value, name=name)
    await ledger.start(flow)
    await ledger.end("first", completed(60))

    shown = {asked["node"]: asked["about"]["input"] for asked in (await ledger.read(approvals))["approvals"]}
    events = [event.facts for event in ledger.notices if event.type == "approval.asked"]
    assert shown == {event["node"]: event["about"]["input"] for event in events}
    assert shown == {"literal": {"share": 50}, "computed": {"share": 60}}


ASKED = ("ship", "asked", "", "large")


@pytest.mark.parametrize(
    ("share", "granted", "reason", "decisions"),
    [
        (5, None, "", [("ship", "granted", "policy", "small")]),
        (50, True, "", [ASKED, ("ship", "granted", "ada", "large")]),
        (50, False, "denied", [ASKED, ("ship", "denied", "ada", "large")]),
        (95, None, "refused_by_policy", [("ship", "refused", "policy", "never")]),
    ],
    ids=["approved", "granted", "denied", "refused"],
)
async def test_a_task_runs_only_as_its_rule_and_the_answer_permit(
    ledger: Ledger, share: int, granted: bool | None, reason: str, decisions: list[tuple[str, ...]]
) -> None:
    await ledger.start(deploying(share))
    if granted is not None:
        assert (ledger.published, await ledger.states()) == ([], {"ship": TaskState.AWAITING_APPROVAL})
        await answer(ledger, "ship", granted=granted)
    ran = await ledger.play(lambda _: completed())

    assert ran == ([] if reason else ["ship"])
    assert await ledger.state() is (WorkflowState.REJECTED if reason else WorkflowState.COMPLETED)
    assert (await ledger.node("ship")).reason == reason
    assert await trail(ledger) == decisions
    assert failures(ledger) == ([("deploy.release", reason)] if reason else [])


@pytest.mark.parametrize(
    ("more", "state"), [({}, TaskState.PUBLISHED), ({"input": {"share": 60}}, TaskState.AWAITING_APPROVAL)]
)
async def test_a_grant_holds_for_its_input_when_run_again(
    ledger: Ledger, more: dict[str, Any], state: TaskState
) -> None:
    await ledger.start(deploying(50))
    await answer(ledger, "ship")
    await ledger.batch(ledger.finished(ledger.published.pop(), replace(failed(retryable=True), retry_ms=1_000)))
    await ledger.pass_time(2)
    await ledger.batch(ledger.finished(ledger.published.pop(), failed()))
    decisions = [decision for _, decision, *_ in await trail(ledger)]
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "ship", **more})

    assert decisions == ["asked", "granted"]
    assert await ledger.states() == {"ship": state}
    assert len(ledger.published) == (state is TaskState.PUBLISHED)


async def test_a_compensation_does_not_lead_past_the_policy(ledger: Ledger) -> None:
    flow = Workflow("sly")
    first = flow.task("work", {"share": 50}, name="first", compensate="deploy.release")
    flow.task("work", after=[first], name="second")
    await ledger.start(flow)
    await ledger.complete("first")
    await ledger.end("second", failed())

    assert await questions(ledger) == ["first.compensate"]
    assert ledger.published == []


async def test_each_element_of_a_map_is_judged_by_its_own_input(ledger: Ledger) -> None:
    flow = Workflow("many")
    flow.map("deploy.release", [5, 50], {"share": {"$from": "item"}}, limit=5, name="ship")
    await ledger.start(flow)

    assert [one.node_key.node for one in ledger.published] == ["ship[0]"]
    assert await questions(ledger) == ["ship[1]"]


async def test_the_timeout_of_a_question_gives_the_answer_of_its_rule() -> None:
    async with opened(dear=CapabilityFacts(frozenset(), 9.0)) as ledger:
        flow = Workflow("two")
        flow.task("deploy.release", {"share": 50}, name="ship")
        flow.task("dear", name="think")
        await ledger.start(flow)
        await ledger.pass_time(3_600)

        assert [one.node_key.node for one in ledger.published] == ["think"]
        assert (await ledger.node("ship")).reason == "approval_timeout"
        assert {one for one in await trail(ledger) if one[2] == "timeout"} == {
            ("ship", "denied", "timeout", "large"),
            ("think", "granted", "timeout", "dear"),
        }
        assert failures(ledger) == []  # nobody has judged the task


async def test_what_cannot_be_found_out_counts_against_the_task(ledger: Ledger) -> None:
    await ledger.start(deploying(0, capability="unregistered"))

    assert await questions(ledger) == ["ship"], "its cost is unknown, so it is asked about"
    assert await trail(ledger) == [("ship", "asked", "", "dear")]


async def test_an_expression_that_fails_refuses_and_does_not_approve() -> None:
    rules = b"""
rules:
  - {name: first, capability: work, when: "join(`1`, input.words)", risk: low, action: approve}
  - {name: second, capability: work, when: "abs(input.words) > `1`", risk: low, action: refuse}
"""
    async with opened(rules) as ledger:
        flow = Workflow("fails")
        flow.task("work", {"words": "none"}, name="one")
        await ledger.start(flow)

        assert await trail(ledger) == [("one", "refused", "policy", "second")]


async def test_show_tells_the_rule_and_the_history_and_no_person_answers_as_the_policy(ledger: Ledger) -> None:
    await ledger.start(deploying(50))
    with pytest.raises(InputError, match="a name of their own"):
        await answer(ledger, "ship", by="policy")
    told = await ledger.read(show, workflow="w", node="ship")

    decision = told["decision"]
    assert (decision["rule"], decision["risk"], decision["decision"]) == ("large", "high", "asked")
    assert [one["decision"] for one in told["history"]] == ["asked"]
    with pytest.raises(NotFound):
        await ledger.read(show, workflow="w", node="other")


async def test_the_trail_is_read_in_pages_and_by_its_conditions(ledger: Ledger) -> None:
    for number in range(5):
        ledger.now_ms += 1_000
        await ledger.start(deploying(5 if number % 2 else 95), workflow=f"w{number}")

    pages = await ledger.pages(list_audit, limit=2, decision="refused")

    assert [entry["workflow"] for page in pages for entry in page["entries"]] == ["w4", "w2", "w0"]


def gated(**placing: Any) -> Any:
    flow = Workflow("gated")
    tests = flow.task("work", name="tests")
    artifacts: dict[str, str | From] = {"passed": tests.result["passed"], "coverage": "results.tests.coverage >= `80`"}
    flow.task("work", after=[flow.approval("Ship?", artifacts=artifacts, name="gate", **placing)], name="then")
    return flow.definition()


async def test_a_gate_asks_only_when_every_artifact_is_there(ledger: Ledger) -> None:
    await ledger.start(gated())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed({"passed": True, "coverage": 90})))
    asked = await questions(ledger)
    await answer(ledger, "gate")
    await ledger.play(lambda _: completed())

    assert (asked, await ledger.state()) == (["gate"], WorkflowState.COMPLETED)
    assert [one[1:3] for one in await trail(ledger)] == [("checked", "gate"), ("asked", ""), ("granted", "ada")]


@pytest.mark.parametrize(
    ("rules", "missing", "found"),
    [
        (POLICY, "coverage", {"passed": True, "coverage": 70}),
        (b"rules: [{name: all, of: approval, risk: low, action: approve}]", "passed", {"coverage": 90}),
    ],
    ids=["asked about", "approved by the policy"],
)
async def test_a_gate_without_an_artifact_is_rejected(rules: bytes, missing: str, found: dict[str, Any]) -> None:
    async with opened(rules) as ledger:
        await ledger.start(gated())
        await ledger.batch(ledger.finished(ledger.published.pop(), completed(found)))
        told = await ledger.read(show, workflow="w", node="gate")
        ended = await questions(ledger), await ledger.state(), (await ledger.node("gate")).reason
        await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "gate"})

        assert ended == ([], WorkflowState.REJECTED, "artifact_missing")
        assert [reason for _, reason in failures(ledger)] == ["refused"] * 2
        assert told["decision"]["why"] == f"the gate lacks {missing}"
        assert told["history"][0]["facts"]["artifacts"][missing] in ("false", "null")
        assert [one[1:3] for one in await trail(ledger)] == [("refused", "gate"), ("redriven", ""), ("refused", "gate")]


async def test_with_a_key_only_a_signed_answer_to_this_very_question_counts(ledger: Ledger) -> None:
    key = "k" * 32
    assert ledger.policy.approvals is not None
    ledger.policy = replace(ledger.policy, approvals=replace(ledger.policy.approvals, answer_key=key))
    await ledger.start(deploying(50))
    told = {"workflow": "w", "node": "ship", "granted": True, "by": "ada", "comment": ""}
    right = told | {"signature": signature(key, told, asked_ms=ledger.now_ms)}
    wrong = {
        "none": told,
        "of another key": told | {"signature": signature("x" * 32, told, asked_ms=ledger.now_ms)},
        "of an earlier question": told | {"signature": signature(key, told, asked_ms=ledger.now_ms - 1)},
        "of another answer": right | {"by": "eve"},
    }
    for body in wrong.values():
        with pytest.raises(InputError, match="not signed"):
            await ledger.ask(Verb.ANSWER, body)
    before = list(ledger.published)
    await ledger.ask(Verb.ANSWER, right)

    assert (before, [one.node_key.node for one in ledger.published]) == ([], ["ship"])
