"""The commands of patterns, on a scripted control plane."""

from __future__ import annotations

import json

from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal

VOTE = ("majority_vote", "--with", 'voters=["code.review", "tests.run"]', "--with", "merge=tests.run")


def test_list_and_show_name_patterns_and_parameters(terminal: Terminal) -> None:
    listed = json.loads(terminal.run("pattern", "list", "--output", "json").out)
    shown = terminal.run("pattern", "show", "majority_vote")

    assert "majority_vote" in [one["pattern"] for one in listed]
    assert shown.code == 0
    assert "voters" in shown.out


def test_a_rendered_pattern_is_a_workflow_file(terminal: Terminal) -> None:
    rendered = terminal.run("pattern", "render", *VOTE)

    assert rendered.code == 0
    assert "vote_2:\n    task: tests.run" in rendered.out


def test_run_starts_the_workflow_and_shows_its_end(terminal: Terminal, plane: ScriptedPlane) -> None:
    ran = terminal.run("pattern", "run", *VOTE)

    assert ran.code == 0
    assert set(plane.only.nodes) == {"vote_1", "vote_2", "result"}


def test_wrong_parameters_and_unknown_patterns_start_nothing(terminal: Terminal, plane: ScriptedPlane) -> None:
    unknown = terminal.run("pattern", "run", "nothing")
    missing = terminal.run("pattern", "run", "majority_vote")
    twice = terminal.run("pattern", "run", *VOTE, "--with", "merge=tests.run")

    assert (unknown.code, missing.code, twice.code) == (4, 2, 2)
    assert "voters: must be given" in missing.err
    assert plane.asked == []
