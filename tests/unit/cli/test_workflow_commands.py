"""Workflow files and patterns are checked, drawn and started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coditect.cli.terminal.output import TableView
from coditect.cli.terminal.tables import nodes_table, workflow_fields
from tests.control_plane import ScriptedPlane, node_row, workflow_row
from tests.unit.cli.scene import Terminal

GOOD = "name: good\nnodes:\n  a: {task: code.review}\n  b: {task: tests.run, after: [a]}\n"
BAD = GOOD.replace("[a]", "[c]").replace("task: code.review", "task: code.review, priority: p9")


@pytest.fixture
def good_file(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_workflow_is_counted(terminal: Terminal, good_file: Path) -> None:
    ran = terminal.run("workflow", "check", str(good_file), "--output", "json")

    assert ran.code == 0
    assert ran.json == {"valid": True, "workflow": "good", "nodes": 2, "layers": 2, "edges": 1, "problems": []}
    assert "nodes     2" in terminal.run("workflow", "check", str(good_file)).out


def test_one_problem_is_an_error_with_its_line_and_way_out(terminal: Terminal, good_file: Path) -> None:
    ran = terminal.run("workflow", "check", str(good_file), "-c", "code.review", "-c", "tests.runs")

    assert ran.code == 2
    assert "  line: 4\n" in ran.err
    assert "Fix: did you mean tests.runs?" in ran.err


def test_several_problems_are_a_table_or_json(terminal: Terminal, good_file: Path) -> None:
    good_file.write_text(BAD.replace("after", "aftre"))

    table = terminal.run("workflow", "check", str(good_file))
    ran = terminal.run("workflow", "check", str(good_file), "--output", "json")

    assert (table.code, ran.code) == (2, 2)
    assert "nodes.b.aftre" in table.out
    assert ran.json["valid"] is False
    assert [problem["line"] for problem in ran.json["problems"]] == [3, 4]


def test_a_graph_is_drawn_as_text_and_as_mermaid_with_states(
    terminal: Terminal, good_file: Path, tmp_path: Path
) -> None:
    states = tmp_path / "states.json"
    states.write_text('{"a": "completed", "b": "working"}')

    text = terminal.run("workflow", "check", str(good_file), "--graph", "text", "--states", str(states))
    mermaid = terminal.run("workflow", "check", str(good_file), "--graph", "mermaid", "--states", str(states))

    assert text.out.splitlines()[1:] == [
        "1  completed  a  task code.review",
        "2  working    b  task tests.run    after a",
    ]
    assert "    n0 --> n1\n" in mermaid.out
    assert "class n1 working" in mermaid.out


@pytest.mark.parametrize("text", ["[]", "nonsense", '{"a": "asleep"}'])
def test_states_that_are_none_are_refused(terminal: Terminal, good_file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "states.json").write_text(text)

    ran = terminal.run(
        "workflow", "check", str(good_file), "--graph", "text", "--states", str(tmp_path / "states.json")
    )

    assert ran.code == 2
    assert "no object of states" in ran.err


def test_a_file_that_is_not_there_is_not_found(terminal: Terminal, tmp_path: Path, good_file: Path) -> None:
    for words in ((str(tmp_path / "none.yaml"),), (str(good_file), "--states", str(tmp_path / "none.json"))):
        assert terminal.run("workflow", "check", *words, "--graph", "text").code == 4


def test_tables_of_a_parent_and_of_its_child_name_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    child = workflow_row("running", workflow="c", parent={"workflow": "w", "node": "book"})
    node = node_row("book", "working", kind="workflow", fence=2, children=["b", "c"])

    workflow_fields(child).write()
    for view in nodes_table([node]):
        assert isinstance(view, TableView)
        view.write()

    printed = capsys.readouterr().out
    assert "parent    w, node book" in printed
    assert printed.splitlines()[-1].split()[:4] == ["book", "working", "0", "c"]


WHOLE = """
name: whole
nodes:
  a: {map: code.review, over: input, limit: 3}
  b: {approval: Ship it?, timeout: 1m, on_timeout: grant, after: [{node: a, on_failure: skip}]}
  c: {task: tests.run, after: [a, {node: b, on_failure: allow}], join: any, when: "states.b == 'completed'"}
"""


def test_graph_of_a_run_has_its_live_states(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    plane.only.nodes["a"]["state"] = "completed"
    plane.only.nodes["gate"]["state"] = "awaiting_approval"

    title, *lines = terminal.run("workflow", "get", started, "--graph", "text").out.splitlines()

    assert title == "good: 3 nodes in 3 layers"
    assert [line.split()[:4] for line in lines] == [
        ["1", "completed", "a", "task"],
        ["2", "awaiting_approval", "gate", "approval"],
        ["3", "blocked", "b", "map"],
    ]


def test_graph_of_a_run_says_what_that_of_its_file_does(
    terminal: Terminal, tmp_path: Path, plane: ScriptedPlane
) -> None:
    file = tmp_path / "whole.yaml"
    file.write_text(WHOLE)
    plane.at_once = False
    run = terminal.run("workflow", "start", str(file), "--detach").out.strip()

    for form in ("text", "mermaid"):
        drawn = terminal.run("workflow", "get", run, "--graph", form).out

        assert drawn == terminal.run("workflow", "check", str(file), "--live", run, "--graph", form).out
        assert "at most 3" in drawn
        assert "grant after 1m" in drawn
        assert "when states.b" in drawn


def test_graph_of_a_run_counts_the_elements_of_its_maps(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    nodes = plane.only.nodes
    for number, state in enumerate(["completed", "failed", "working"]):
        nodes[f"b[{number}]"] = nodes["b"] | {"name": f"b[{number}]", "state": state, "after": [], "definition": {}}

    lines = terminal.run("workflow", "get", started, "--graph", "text").out.splitlines()

    assert lines[0] == "good: 3 nodes in 3 layers"
    assert "map tests.run, at most 3: 1/3 completed, 1 working, 1 failed" in lines[3]


VOTE = ("majority_vote", "--with", 'voters=["code.review", "tests.run"]', "--with", "merge=tests.run")


def test_list_and_show_name_patterns_and_parameters(terminal: Terminal) -> None:
    listed = json.loads(terminal.run("workflow", "pattern", "--output", "json").out)
    shown = terminal.run("workflow", "pattern", "majority_vote")

    assert "majority_vote" in [row["pattern"] for row in listed]
    assert shown.code == 0
    assert "voters" in shown.out


def test_a_rendered_pattern_is_a_workflow_file(terminal: Terminal) -> None:
    rendered = terminal.run("workflow", "pattern", "--render", *VOTE)

    assert rendered.code == 0
    assert "vote_2:\n    task: tests.run" in rendered.out


def test_run_starts_the_workflow_and_shows_its_end(terminal: Terminal, plane: ScriptedPlane) -> None:
    ran = terminal.run("workflow", "start", "--pattern", *VOTE)

    assert ran.code == 0
    assert set(plane.only.nodes) == {"vote_1", "vote_2", "result"}


def test_wrong_parameters_and_unknown_patterns_start_nothing(terminal: Terminal, plane: ScriptedPlane) -> None:
    unknown = terminal.run("workflow", "start", "--pattern", "nothing")
    missing = terminal.run("workflow", "start", "--pattern", "majority_vote")
    twice = terminal.run("workflow", "start", "--pattern", *VOTE, "--with", "merge=tests.run")
    both = terminal.run("workflow", "start", "--pattern", *VOTE, "--goal", "Vote")

    assert (unknown.code, missing.code, twice.code, both.code) == (4, 2, 2, 2)
    assert "voters: must be given" in missing.err
    assert plane.asked == []
