"""Approval that is learned from outcomes: within the bounds of the policy, explained, and lost at one bad outcome."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.wire.control import Verb
from coditect.workflow.approvals.policy import Evidence, Learning, Risk, wilson
from coditect.workflow.builder import Workflow
from dispatcher.coordination.approvals import show
from tests.unit.dispatcher.ledger.nodes.test_approval_policy import answer, opened
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed

POLICY = """
rules:
  - {name: restarts, of: task, capability: restart, risk: RISK, action: ask, learn: true}
learning: {threshold: 0.7, window: 20, recovery: 3, ceiling: medium}
"""


def rules(risk: str = "medium") -> bytes:
    return POLICY.replace("RISK", risk).encode()


async def restart(ledger: Ledger, number: int, *, good: bool = True) -> str:
    """Has one action done, granting it if it asks; returns who granted it."""
    flow, workflow = Workflow("one"), f"w{number}"
    flow.task("restart", name="only")
    ledger.now_ms += 1_000
    await ledger.start(flow, workflow=workflow)
    told = await decision(ledger, workflow)
    if told["decision"] == "asked":
        await ledger.ask(Verb.ANSWER, {"workflow": workflow, "node": "only", "granted": True, "by": "ada"})
    await ledger.play(lambda _: completed() if good else failed())
    return str((await decision(ledger, workflow))["by"])


async def decision(ledger: Ledger, workflow: str) -> dict[str, Any]:
    told = await ledger.read(show, workflow=workflow, node="only")
    return dict(told["decision"])


async def test_an_action_that_has_proved_itself_is_approved_and_the_arithmetic_is_kept() -> None:
    async with opened(rules()) as ledger:
        granted = [await restart(ledger, number) for number in range(20)]
        told = await decision(ledger, "w11")
        bad = await restart(ledger, 20, good=False)
        after = [await restart(ledger, number) for number in range(21, 26)]
        lost = await decision(ledger, "w21")

    learned_at = granted.index("learned")
    assert granted == ["ada"] * learned_at + ["learned"] * (20 - learned_at)
    assert wilson(learned_at, learned_at) >= 0.7 > wilson(learned_at - 1, learned_at - 1)
    assert told["facts"]["lower_bound"] == pytest.approx(wilson(11, 11), abs=1e-6)
    assert told["facts"]["arithmetic"][-1] == "0.7412 reaches the threshold 0.7"
    assert (bad, after) == ("learned", ["ada", "ada", "ada", "learned", "learned"])
    assert lost["facts"]["arithmetic"][-1] == "only 0 of 3 good outcomes followed the last bad one"


async def test_what_a_person_denies_or_a_compensation_undoes_is_a_bad_outcome() -> None:
    denied = Workflow("denied")
    denied.task("restart", name="ship")
    undone = Workflow("undone")
    undone.task("work", after=[undone.task("restart", name="only", compensate="undo")], name="then")
    async with opened(rules()) as ledger:
        await ledger.start(denied)
        await answer(ledger, "ship", granted=False)
        await restart(ledger, 1)
        after_denial = (await decision(ledger, "w1"))["facts"]
        await ledger.start(undone, workflow="w0")
        await ledger.ask(Verb.ANSWER, {"workflow": "w0", "node": "only", "granted": True, "by": "ada"})
        await ledger.play(lambda one: failed() if one.node_key.node == "then" else completed())
        await restart(ledger, 2)
        after_undoing = (await decision(ledger, "w2"))["facts"]

    assert (after_denial["outcomes"], after_denial["good"]) == (1, 0)
    assert (after_undoing["outcomes"], after_undoing["good"]) == (4, 2)


async def test_high_risk_is_never_learned() -> None:
    async with opened(rules("high")) as ledger:
        granted = {await restart(ledger, number) for number in range(25)}
        told = await decision(ledger, "w24")

    assert granted == {"ada"}
    assert "its risk, high, is above the ceiling, medium" in told["facts"]["arithmetic"]


@given(st.lists(st.booleans(), max_size=250), st.sampled_from([0.5, 0.7, 0.9]), st.integers(10, 200))
def test_a_bad_outcome_never_leaves_an_action_approved(recent: list[bool], threshold: float, window: int) -> None:
    learning = Learning(threshold, window)

    found = Evidence.of([*recent, False], learning, Risk.LOW)

    assert found.reasons_against


@pytest.mark.parametrize("window", [10, 50, 200])
def test_a_bad_outcome_in_a_full_window_lowers_the_bound(window: int) -> None:
    good, learning = [True] * window, Learning(0.9, window)

    assert Evidence.of([*good, False], learning, Risk.LOW).bound < Evidence.of(good, learning, Risk.LOW).bound


@given(st.integers(1, 400), st.data())
def test_the_bound_is_below_the_share_and_grows_with_each_success(outcomes: int, data: st.DataObject) -> None:
    good = data.draw(st.integers(0, outcomes))

    assert 0 <= wilson(good, outcomes) <= good / outcomes
    assert wilson(good + 1, outcomes + 1) > wilson(good, outcomes)
