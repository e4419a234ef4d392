from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.workflow.definition import After, Definition, Node, OnFailure
from coditect.workflow.states import Tally, TaskState
from tests.unit.workflow.graphs import definitions, node, plain_calls
from tests.unit.workflow.model import naive

S = TaskState
ENDS = sorted(state for state in TaskState if state.terminal)


def decide(one: Node, states: dict[str, TaskState]) -> TaskState | None:
    tally = Tally.of(one)
    for edge in one.after:
        if (state := states[edge.node]).terminal:
            tally = tally.with_end(edge.on_failure, state)
    return tally.decision


@given(definitions(work=plain_calls, most=6), st.data())
def test_a_node_becomes_what_the_naive_rules_say(definition: Definition, data: st.DataObject) -> None:
    states = {one.name: data.draw(st.sampled_from(TaskState)) for one in definition.nodes}

    for one in definition.nodes:
        assert decide(one, states) == naive(one, states)


@given(definitions(work=plain_calls, most=8), st.data())
def test_a_tally_fed_one_by_one_decides_as_a_look_at_all_does(definition: Definition, data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(definition.nodes))
    states = {other.name: S.BLOCKED for other in definition.nodes}
    tally = Tally.of(one)

    for edge in data.draw(st.permutations(one.after)):
        states[edge.node] = data.draw(st.sampled_from(ENDS))
        tally = tally.with_end(edge.on_failure, states[edge.node])
        assert tally.decision == decide(one, states)


@pytest.mark.parametrize(
    ("policy", "ended", "becomes"),
    [
        (OnFailure.FAIL, S.COMPLETED, S.READY),
        (OnFailure.FAIL, S.FAILED, S.FAILED),
        (OnFailure.FAIL, S.DEAD, S.FAILED),
        (OnFailure.FAIL, S.REJECTED, S.REJECTED),
        (OnFailure.FAIL, S.CANCELED, S.CANCELED),
        (OnFailure.FAIL, S.SKIPPED, S.SKIPPED),
        (OnFailure.SKIP, S.COMPLETED, S.READY),
        (OnFailure.SKIP, S.FAILED, S.SKIPPED),
        (OnFailure.SKIP, S.REJECTED, S.SKIPPED),
        (OnFailure.ALLOW, S.FAILED, S.READY),
        (OnFailure.ALLOW, S.SKIPPED, S.READY),
        (OnFailure.ALLOW, S.WORKING, None),
    ],
)
def test_an_edge_passes_an_end_on_by_its_policy(policy: OnFailure, ended: TaskState, becomes: TaskState | None) -> None:
    assert decide(node("b", After("a", policy)), {"a": ended}) is becomes


def test_a_join_ends_as_soon_as_its_number_is_reached_or_cannot_be() -> None:
    one = node("c", "a", "b", join="any")

    assert decide(one, {"a": S.COMPLETED, "b": S.WORKING}) is S.READY
    assert decide(one, {"a": S.FAILED, "b": S.WORKING}) is None
    assert decide(one, {"a": S.FAILED, "b": S.SKIPPED}) is S.FAILED

    one = node("d", "a", "b", "c", join=2)

    assert decide(one, {"a": S.COMPLETED, "b": S.FAILED, "c": S.WORKING}) is None
    assert decide(one, {"a": S.WORKING, "b": S.FAILED, "c": S.SKIPPED}) is S.FAILED
