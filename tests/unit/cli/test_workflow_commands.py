from __future__ import annotations

from pathlib import Path

import pytest

from coditect.cli.terminal.output import TableView
from coditect.cli.terminal.tables import nodes_table, workflow_fields
from coditect.workflow.rows import NodeRow, WorkflowRow
from tests.unit.cli.scene import Terminal

GOOD = "name: good\nnodes:\n  a: {task: code.review}\n  b: {task: tests.run, after: [a]}\n"
BAD = GOOD.replace("[a]", "[c]").replace("task: code.review", "task: code.review, priority: p9")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_workflow_is_counted(terminal: Terminal, file: Path) -> None:
    ran = terminal.run("workflow", "check", str(file), "--output", "json")

    assert ran.code == 0
    assert ran.json == {"valid": True, "workflow": "good", "nodes": 2, "layers": 2, "edges": 1, "problems": []}
    assert "nodes     2" in terminal.run("workflow", "check", str(file)).out


def test_one_problem_is_an_error_with_its_line_and_way_out(terminal: Terminal, file: Path) -> None:
    ran = terminal.run("workflow", "check", str(file), "-c", "code.review", "-c", "tests.runs")

    assert ran.code == 2
    assert "  line: 4\n" in ran.err
    assert "Fix: did you mean tests.runs?" in ran.err


def test_several_problems_are_a_table_or_json(terminal: Terminal, file: Path) -> None:
    file.write_text(BAD.replace("after", "aftre"))

    table = terminal.run("workflow", "check", str(file))
    ran = terminal.run("workflow", "check", str(file), "--output", "json")

    assert (table.code, ran.code) == (2, 2)
    assert "nodes.b.aftre" in table.out
    assert ran.json["valid"] is False
    assert [problem["line"] for problem in ran.json["problems"]] == [3, 4]


def test_a_graph_is_drawn_as_text_and_as_mermaid_with_states(terminal: Terminal, file: Path, tmp_path: Path) -> None:
    states = tmp_path / "states.json"
    states.write_text('{"a": "completed", "b": "working"}')

    text = terminal.run("workflow", "check", str(file), "--graph", "text", "--states", str(states))
    mermaid = terminal.run("workflow", "check", str(file), "--graph", "mermaid", "--states", str(states))

    assert text.out.splitlines()[1:] == [
        "1  completed  a  task code.review",
        "2  working    b  task tests.run    after a",
    ]
    assert "    n0 --> n1\n" in mermaid.out
    assert "class n1 working" in mermaid.out


@pytest.mark.parametrize("text", ["[]", "nonsense", '{"a": "asleep"}'])
def test_states_that_are_none_are_refused(terminal: Terminal, file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "states.json").write_text(text)

    ran = terminal.run("workflow", "check", str(file), "--graph", "text", "--states", str(tmp_path / "states.json"))

    assert ran.code == 2
    assert "no object of states" in ran.err


def test_a_file_that_is_not_there_is_not_found(terminal: Terminal, tmp_path: Path, file: Path) -> None:
    for words in ((str(tmp_path / "none.yaml"),), (str(file), "--states", str(tmp_path / "none.json"))):
        assert terminal.run("workflow", "check", *words, "--graph", "text").code == 4


def test_tables_of_a_parent_and_of_its_child_name_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    child = WorkflowRow.read({"workflow": "c", "state": "running", "parent": {"workflow": "w", "node": "book"}})
    node = NodeRow.read({"name": "book", "state": "working", "kind": "workflow", "fence": 2, "children": ["b", "c"]})

    workflow_fields(child).write()
    for view in nodes_table([node]):
        assert isinstance(view, TableView)
        view.write()

    told = capsys.readouterr().out
    assert "parent    w, node book" in told
    assert told.splitlines()[-1].split()[:4] == ["book", "working", "0", "c"]
