from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidWorkflow
from coditect.workflow.definition import Approval, Call, Definition, Each, Node
from coditect.workflow.graph import graph_of
from tests.unit.workflow.graphs import definitions, flow, node, plain_calls


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
