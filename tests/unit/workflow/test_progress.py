from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.workflow.definition import After, Call, Definition, Node, OnFailure
from coditect.workflow.graph import Graph, graph_of
from coditect.workflow.join import (
    Tally,
    beginning,
    compensations,
    consequences,
    decide,
    workflow_end,
)
from coditect.workflow.states import TaskState, WorkflowState
from tests.unit.workflow.graphs import definitions, flow, node, plain_calls

S = TaskState
ENDS = sorted(state for state in TaskState if state.terminal)
FIRST_TO_LAST = ("failed", "rejected", "canceled", "skipped")


def naive(one: Node, states: dict[str, TaskState]) -> TaskState | None:
    """The rules of the module's table, tried out on every way in which the open predecessors could still end."""
    met = [
        e for e in one.after if states[e.node] == "completed" or (e.on_failure == "allow" and states[e.node].terminal)
    ]
    still = [e for e in one.after if not states[e.node].terminal]
    need = {"all": len(one.after), "any": min(1, len(one.after))}.get(str(one.join), one.join)
    assert isinstance(need, int)
    if len(met) >= need:
        return S.READY
    if len(met) + len(still) >= need:
        return None
    lost = [e for e in one.after if e not in met and e not in still]
    kinds = {"skipped" if e.on_failure == "skip" else str(states[e.node]).replace("dead", "failed") for e in lost}
    return S(next(kind for kind in FIRST_TO_LAST if kind in kinds))


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


def run(graph: Graph, data: st.DataObject, *, at_once: bool) -> dict[str, TaskState]:
    """A run in which each ready node ends somehow, one or all of them at a time."""
    states = beginning(graph)
    while ready := [name for name, state in states.items() if state is S.READY]:
        ended = ready if at_once else [data.draw(st.sampled_from(ready))]
        states |= {name: data.draw(st.sampled_from(ENDS)) for name in ended}
        changed = consequences(graph, states, ended)
        assert all(states[name] is S.BLOCKED for name in changed)
        states |= changed
        blocked = [name for name, state in states.items() if state is S.BLOCKED]
        assert all(naive(graph.nodes[name], states) is None for name in blocked)
    return states


@given(definitions(work=plain_calls, most=8), st.booleans(), st.data())
def test_every_run_ends_and_leaves_nothing_blocked(definition: Definition, at_once: bool, data: st.DataObject) -> None:
    graph = graph_of(definition)

    states = run(graph, data, at_once=at_once)

    assert all(state.terminal for state in states.values())
    assert workflow_end(graph, states) is not None


@given(definitions(work=plain_calls, most=8), st.data())
def test_a_workflow_whose_nodes_all_complete_is_completed(definition: Definition, data: st.DataObject) -> None:
    graph = graph_of(definition)
    states = dict.fromkeys(graph.order, S.COMPLETED)
    unfinished = data.draw(st.sampled_from(graph.order))

    assert workflow_end(graph, states) is WorkflowState.COMPLETED
    assert workflow_end(graph, states | {unfinished: S.WORKING}) is None


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


def test_the_first_of_any_is_enough_and_only_the_last_failure_is_too_many() -> None:
    one = node("c", "a", "b", join="any")

    assert decide(one, {"a": S.COMPLETED, "b": S.WORKING}) is S.READY
    assert decide(one, {"a": S.FAILED, "b": S.WORKING}) is None
    assert decide(one, {"a": S.FAILED, "b": S.SKIPPED}) is S.FAILED


def test_k_of_n_ends_as_soon_as_k_cannot_be_reached() -> None:
    one = node("d", "a", "b", "c", join=2)

    assert decide(one, {"a": S.COMPLETED, "b": S.FAILED, "c": S.WORKING}) is None
    assert decide(one, {"a": S.WORKING, "b": S.FAILED, "c": S.SKIPPED}) is S.FAILED


def test_a_skip_travels_down_to_the_first_who_does_not_mind() -> None:
    graph = graph_of(
        flow(node("a"), node("b", After("a", OnFailure.SKIP)), node("c", "b"), node("d", After("c", OnFailure.ALLOW)))
    )

    changed = consequences(graph, beginning(graph) | {"a": S.FAILED}, ["a"])

    assert changed == {"b": S.SKIPPED, "c": S.SKIPPED, "d": S.READY}


@pytest.mark.parametrize(
    ("last", "end"),
    [
        ({"b": S.COMPLETED, "c": S.SKIPPED}, WorkflowState.COMPLETED),
        ({"b": S.CANCELED, "c": S.COMPLETED}, WorkflowState.CANCELED),
        ({"b": S.CANCELED, "c": S.REJECTED}, WorkflowState.REJECTED),
        ({"b": S.DEAD, "c": S.REJECTED}, WorkflowState.FAILED),
    ],
)
def test_a_workflow_ends_as_its_last_nodes_do(last: dict[str, TaskState], end: WorkflowState) -> None:
    graph = graph_of(flow(node("a"), node("b", "a"), node("c", "a")))

    assert workflow_end(graph, {"a": S.FAILED} | last) is end


def test_what_completed_is_undone_from_the_end_and_nothing_else() -> None:
    undo = Call("some.work", compensate="some.undo")
    graph = graph_of(flow(*(node(name, *after, work=undo) for name, after in (("a", ""), ("b", "a"), ("c", "b")))))

    assert compensations(graph, {"a": S.COMPLETED, "b": S.COMPLETED, "c": S.FAILED}) == ("b", "a")
