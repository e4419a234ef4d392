"""Graphs of workflows that run, drawn on a scripted control plane."""

from __future__ import annotations

from pathlib import Path

from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal

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


def test_graph_of_a_run_of_an_older_control_plane_shows_what_it_tells(
    terminal: Terminal, started: str, plane: ScriptedPlane
) -> None:
    for node in plane.only.nodes.values():
        del node["definition"], node["on_failure"]

    drawn = terminal.run("workflow", "get", started, "--graph", "text").out

    assert "task tests.run" in drawn
    assert "after a, gate" in drawn


def test_graph_of_a_file_can_show_the_states_of_a_run(
    terminal: Terminal, started: str, plane: ScriptedPlane, file: Path
) -> None:
    plane.only.nodes["a"]["state"] = "working"

    text = terminal.run("workflow", "check", str(file), "--graph", "text", "--live", started)
    mermaid = terminal.run("workflow", "check", str(file), "--graph", "mermaid", "--live", started)

    assert "1  working  a     task code.review" in text.out
    assert "map tests.run, at most 3" in text.out
    assert "class n0 working" in mermaid.out
