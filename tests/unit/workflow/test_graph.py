"""The graph of a workflow: its order, what it refuses, and what becomes of each node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidWorkflow
from coditect.workflow.definition import MAX_WORKFLOW_NODES, After, Approval, Call, Definition, Each, Node, OnFailure
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.graph import graph_of
from coditect.workflow.states import Tally, TaskState
from tests.unit.workflow.graphs import definitions, flow, node, plain_calls
from tests.unit.workflow.model import naive


def problems(definition: Definition, known: set[str] | None = None) -> list[str]:
    with pytest.raises(InvalidWorkflow) as refused:
        graph_of(definition, capabilities=known)
    return [f"{one.place}: {one.sentence}; {one.fix}" for one in refused.value.problems]


@given(definitions(work=plain_calls, most=12))
def test_every_node_stands_after_its_predecessors(definition: Definition) -> None:
    graph = graph_of(definition)
    place = {name: number for number, name in enumerate(graph.order)}
    layer = {name: number for number, names in enumerate(graph.layers) for name in names}

    assert sorted(place) == sorted(layer) == sorted(one.name for one in definition.nodes)
    for one in definition.nodes:
        assert all(place[edge.node] < place[one.name] for edge in one.after)
        assert layer[one.name] == max((layer[edge.node] + 1 for edge in one.after), default=0)
        assert all(one.name in graph.dependents[edge.node] for edge in one.after)
    assert sum(map(len, graph.dependents.values())) == sum(len(one.after) for one in definition.nodes)


@given(definitions(work=plain_calls, most=8), st.data())
def test_an_edge_back_is_refused_with_its_circle(definition: Definition, data: st.DataObject) -> None:
    graph = graph_of(definition)
    first = data.draw(st.sampled_from(graph.order))
    behind = [first]
    for name in behind:
        behind += [one for one in graph.dependents[name] if one not in behind]
    last = data.draw(st.sampled_from(behind))
    closed = tuple(
        Node(one.name, one.work, (*one.after, *node("x", last).after), "all") if one.name == first else one
        for one in definition.nodes
    )

    told = problems(Definition("flow", closed))

    assert len(told) == 1
    assert "comes after itself" in told[0] if first == last else "in a circle: " in told[0]
    assert first == last or all(name in behind for name in told[0].split("circle: ")[1].split(";")[0].split(" → "))


def test_order_is_the_definition_s_wherever_the_edges_allow_it() -> None:
    graph = graph_of(flow(node("c", "a", "b"), node("a"), node("b"), node("d", "a")))

    assert graph.order == ("a", "b", "d", "c")


@pytest.mark.parametrize(
    ("definition", "told"),
    [
        (flow(), "nodes: A workflow has at least one node; add a node"),
        (flow(node("a", "a")), "nodes.a.after[0]: 'a' comes after itself; remove it from its own `after`"),
        (flow(node("build"), node("b", "biuld")), "nodes.b.after[0]: There is no node 'biuld'; did you mean build?"),
        (flow(node("a"), node("b", "a", "a")), "nodes.b.after[1]: 'a' stands twice in `after`; name it once"),
        (flow(node("a"), node("a")), "nodes.a: 2 nodes have the name 'a'; give each node a name of its own"),
        (
            flow(node("a"), node("b", "a", join=2)),
            "nodes.b.join: `join` wants 2 of 1 predecessors; between 1 and 1, or all, or any",
        ),
        (
            flow(node("a", "c"), node("b", "a"), node("c", "b"), node("d", "c")),
            "nodes.b.after[0]: The nodes come after each other in a circle: a → b → c → a; take one of these edges out",
        ),
    ],
)
def test_what_does_not_hold_together_is_refused_with_its_place_and_a_way_out(definition: Definition, told: str) -> None:
    assert problems(definition) == [told]


def test_every_problem_is_told_at_once() -> None:
    assert len(problems(flow(node("a", "a", "x"), node("b", "y")))) == 3


def test_an_unknown_capability_is_refused_with_the_nearest_name() -> None:
    definition = flow(
        node("a", work=Call("code.reveiw", compensate="zzz")),
        node("b", work=Each(Call("tests.rnu"), "input", 3)),
        node("c", work=Approval("?")),
        node("d", work=Call("tests.run")),
    )

    assert problems(definition, {"code.review", "tests.run"}) == [
        "nodes.a.task: No agent offers the capability 'code.reveiw'; did you mean code.review?",
        "nodes.a.compensate: No agent offers the capability 'zzz'; start an agent that has it",
        "nodes.b.map: No agent offers the capability 'tests.rnu'; did you mean tests.run?",
    ]


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


CALL = Call("load.work", {"milliseconds": 1})


def layered(nodes: int, width: int) -> Definition:
    """Layers of `width`, each node after three of the layer before it."""

    def after(number: int) -> tuple[After, ...]:
        if number < width:
            return ()
        first = number // width * width - width
        return tuple(After(f"n{first + (number + step) % width}") for step in range(3))

    return Definition("large", tuple(Node(f"n{number}", CALL, after(number)) for number in range(nodes)))


@pytest.mark.proof
@pytest.mark.no_cover  # smaller graphs run the same lines
def test_a_hundred_thousand_nodes_are_written_read_ordered_and_run() -> None:
    definition = from_document(to_document(layered(MAX_WORKFLOW_NODES, 1_000)))

    graph = graph_of(definition)
    tallies = {name: Tally.of(node) for name, node in graph.nodes.items()}
    states = dict.fromkeys(graph.order, TaskState.BLOCKED)
    for name in graph.order:
        assert tallies[name].decision is TaskState.READY
        states[name] = TaskState.COMPLETED
        for dependent in graph.dependents[name]:
            tallies[dependent] = tallies[dependent].with_end(graph.nodes[dependent].after[0].on_failure, states[name])

    assert len(graph.layers) == MAX_WORKFLOW_NODES // 1_000
