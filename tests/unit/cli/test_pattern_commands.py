"""The commands of patterns, on a scripted control plane."""

from __future__ import annotations

import json

from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal

VOTE = ("majority_vote", "--with", 'voters=["code.review", "tests.run"]', "--with", "merge=tests.run")


def test_list_and_show_name_patterns_and_parameters(terminal: Terminal) -> None:
    listed = json.loads(terminal.run("workflow", "pattern", "--output", "json").out)
    shown = terminal.run("workflow", "pattern", "majority_vote")

    assert "majority_vote" in [one["pattern"] for one in listed]
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
