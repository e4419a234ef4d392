from __future__ import annotations

import re

from hypothesis import given

from coditect.workflow.definition import (
    After,
    Approval,
    AwaitSignal,
    Call,
    Definition,
    Each,
    OnFailure,
    OnTimeout,
    WaitFor,
    WaitUntil,
)
from coditect.workflow.render import draw_mermaid, draw_text
from coditect.workflow.states import TaskState
from tests.unit.workflow.graphs import definitions, flow, node

SAMPLE = flow(
    node("a", work=Each(Call("code.review"), "input", 5)),
    node("b", "a", work=Approval('Say "yes" <b>#1</b>?\n\x1b[2J', 60_000, OnTimeout.GRANT)),
    node("c", "b", After("a", OnFailure.ALLOW), join="any", when="input.go"),
)


def test_a_graph_as_text() -> None:
    assert draw_text(SAMPLE, {"a": TaskState.COMPLETED}).splitlines() == [
        "flow: 3 nodes in 3 layers",
        "1  completed  a  map code.review, at most 5",
        "2             b  approval “Say \"yes\" <b>#1</b>?  [2J”, grant after 1m  after a",
        "3             c  task some.work                                        "
        "after any of b, a (allow on failure); when input.go",
    ]  # fmt: skip


def test_a_graph_as_mermaid() -> None:
    assert draw_mermaid(SAMPLE, {"a": TaskState.COMPLETED, "other": TaskState.DEAD}).splitlines() == [
        "flowchart TD",
        '    n0[["a<br/>map code.review, at most 5"]]',
        '    n1{{"b<br/>approval “Say #quot;yes#quot; #lt;b#gt;#35;1#lt;/b#gt;?  [2J”, grant after 1m"}}',
        '    n2["c<br/>task some.work<br/>any of 2<br/>when input.go"]',
        "    n0 --> n1",
        "    n1 --> n2",
        "    n0 -. allow .-> n2",
        "    classDef completed fill:#d3f9d8",
        "    class n0 completed",
    ]


def test_nodes_that_wait_say_for_what() -> None:
    waits = [
        WaitFor(7_200_000),
        WaitUntil("2026-12-24T08:00:00Z"),
        WaitUntil({"$from": "input.at"}),
        AwaitSignal("go", 9),
    ]
    waiting = flow(*(node(f"n{number}", work=work) for number, work in enumerate(waits)))

    assert [line.split(maxsplit=2)[2] for line in draw_text(waiting).splitlines()[1:]] == [
        "wait 2h",
        "wait until 2026-12-24T08:00:00Z",
        "wait until input.at",
        "signal go, fail after 9ms",
    ]
    assert '    n0(["n0<br/>wait 2h"])' in draw_mermaid(waiting).splitlines()


def test_elements_are_counted_at_their_map_by_state() -> None:
    elements = [TaskState.COMPLETED, TaskState.WORKING, TaskState.COMPLETED, TaskState.READY]
    states = {f"a[{number}]": state for number, state in enumerate(elements)} | {"a": TaskState.WORKING}

    text, mermaid = draw_text(SAMPLE, states), draw_mermaid(SAMPLE, states)

    assert text.splitlines()[1] == "1  working  a  map code.review, at most 5: 2/4 completed, 1 ready, 1 working"
    assert 'n0[["a<br/>map code.review, at most 5<br/>2/4 completed, 1 ready, 1 working"]]' in mermaid
    assert "class n0 working" in mermaid


@given(definitions(most=5))
def test_every_node_is_drawn_once_and_every_edge(definition: Definition) -> None:
    states = {one.name: TaskState.WORKING for one in definition.nodes}
    drawn = draw_mermaid(definition, states)

    assert len(draw_text(definition, states).splitlines()) == len(definition.nodes) + 1
    assert len(re.findall(r"^    n\d+ (?:-->|-\. \w+ \.->) n\d+$", drawn, re.MULTILINE)) == sum(
        len(one.after) for one in definition.nodes
    )
    assert all(line.count('"') in (0, 2) for line in drawn.splitlines())
