"""Definitions with workflows for their children, in Python and in files."""

from __future__ import annotations

import pytest

from coditect import Retry, Workflow
from coditect.client.workflows import MOST_CHILDREN_BYTES, cut
from coditect.errors import InputError, InvalidWorkflow, TooLarge
from coditect.workflow.definition import After, Call, Definition, Node, SubWorkflow
from coditect.workflow.documents.file import read_workflow, write_json, write_yaml
from coditect.workflow.graph import MOST_CHILD_NODES, child_problems, children_of
from coditect.workflow.render import draw_mermaid, draw_text

HEAD = "name: flow\nnodes:\n  a: {workflow: child}\nworkflows:\n  child:\n"


def child(name: str = "child") -> Workflow:
    flow = Workflow(name)
    flow.task("some.work", flow.input, name="n")
    return flow


def test_a_child_is_given_as_a_workflow_and_its_result_is_used() -> None:
    flow = Workflow("flow")
    made = flow.workflow(child(), {"x": flow.input["x"]}, name="a", retry=Retry(max_attempts=2), compensate="un.do")
    flow.task("some.work", made.result["y"], name="b")

    definition = flow.definition()

    work = SubWorkflow("child", {"x": {"$from": "input.x"}}, Retry(2, "1s", "1m"), "un.do")
    assert definition.nodes[0] == Node("a", work)
    assert definition.nodes[1].after == (After("a"),)
    assert definition.workflows == (child().definition(),)


def test_children_of_a_child_and_a_workflow_that_runs_itself_are_known_to_the_whole() -> None:
    middle = Workflow("middle")
    middle.workflow(child(), name="inner")
    flow = Workflow("flow")
    flow.workflow(middle, name="a")
    flow.workflow("child", name="b")

    definition = flow.definition()

    assert [one.name for one in definition.workflows] == ["child", "middle"]
    assert all(not one.workflows for one in definition.workflows)

    itself = Workflow("itself")
    itself.workflow("itself", name="again", when="input.more")

    own = itself.definition()

    assert own.workflows == ()
    assert children_of(own) == (own,)


@pytest.mark.parametrize("same", ["child", "flow"])
def test_two_workflows_of_one_name_are_refused(same: str) -> None:
    other = Workflow(same)
    other.task("other.work")
    flow = Workflow("flow")
    flow.workflow(child())

    with pytest.raises(InputError, match="Two workflows have one name"):
        flow.workflow(other)


def test_a_name_that_stands_for_no_workflow_is_refused() -> None:
    flow = Workflow("flow")
    flow.workflow("childs", name="a")
    flow.workflow(child(), name="b")

    with pytest.raises(InvalidWorkflow, match="no workflow 'childs' here") as refused:
        flow.definition()

    assert "did you mean child?" in str(refused.value)


def test_a_file_has_the_same_children_and_a_drawing_their_names() -> None:
    flow = Workflow("flow", description="whole")
    flow.workflow(child(), {"x": 1}, name="a")
    definition = flow.definition()

    assert read_workflow(write_yaml(definition).encode()) == definition
    assert read_workflow(write_json(definition).encode(), is_json=True) == definition
    assert draw_text(definition).splitlines()[1] == "1  a  workflow child"
    assert '    n0[/"a<br/>workflow child"/]' in draw_mermaid(definition)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "    nodes:\n      n: {tusk: x.y}\n", "line 7: workflows.child.nodes.n: A node is one of"),
        (HEAD + "    nodes:\n      n: {task: x.y, aftre: [m]}\n", "line 7: workflows.child.nodes.n.aftre: There is no"),
        (HEAD + "    nodes:\n      n: {task: x.y, after: [m]}\n", "line 7: workflows.child.nodes.n.after[0]: There is"),
        (HEAD + "    nodes:\n      n: {task: x.y, when: a b}\n", "line 7: workflows.child.nodes.n.when: 'a b': This"),
        (HEAD + "    nodes:\n      n: {workflow: kid}\n", "line 7: workflows.child.nodes.n.workflow: There is no work"),
        (HEAD + "    nodez: {}\n", "line 5: workflows.child: The field 'nodes' is missing"),
        (HEAD + "    nodes: {}\n", "line 6: workflows.child.nodes: A workflow has at least one node"),
        (HEAD + "    name: x\n    nodes:\n      n: {task: x.y}\n", "line 6: workflows.child.name: There is no field"),
        (HEAD.replace("  child:", "  flow:") + "    nodes:\n      n: {task: x.y}\n", "line 3: nodes.a.workflow: There"),
    ],
)
def test_what_is_wrong_in_a_child_is_told_with_its_line_and_place(text: str, told: str) -> None:
    with pytest.raises(InvalidWorkflow) as refused:
        read_workflow(text.encode())

    first = refused.value.problems[0]
    assert f"line {first.line}: {first.place}: {first.sentence}".startswith(told)


def test_problems_and_the_bound_of_a_child_are_told_with_its_place() -> None:
    flow = Workflow("flow")
    flow.workflow(child(), name="a")

    (problem,) = child_problems(flow.definition(), capabilities={"some.works"})

    assert problem.path == ("workflows", "child", "nodes", "n", "task")

    nodes = tuple(Node(f"n{number}", Call("some.work")) for number in range(MOST_CHILD_NODES + 1))
    large = Definition("flow", (Node("a", SubWorkflow("child")),), workflows=(Definition("child", nodes),))
    itself = Definition("flow", (*nodes, Node("again", SubWorkflow("flow"))))

    (problem,), (own,) = child_problems(large), child_problems(itself)

    assert (problem.path, own.path) == (("workflows", "child", "nodes"), ("nodes",))
    assert "at most 1,000 nodes" in problem.sentence


def test_children_go_with_the_first_chunk_and_have_a_bound_together() -> None:
    flow = Workflow("flow")
    flow.workflow(child(), name="a")
    large = Workflow("child")
    large.task("some.work", "x" * MOST_CHILDREN_BYTES, name="n")
    beyond = Workflow("flow")
    beyond.workflow(large, name="a")

    ((chunk, sent),) = cut(flow.definition(), None, workflow="w", key=None).chunks()

    assert sent == 1
    assert chunk["workflows"] == {"child": {"nodes": {"n": {"task": "some.work", "input": {"$from": "input"}}}}}
    with pytest.raises(TooLarge, match="sub-workflows are over the limit"):
        cut(beyond.definition(), None, workflow="w", key=None)
