"""Labels on the command line, on a scripted control plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal


def test_labels_are_given_at_the_start_and_select_what_is_listed(
    terminal: Terminal, file: Path, plane: ScriptedPlane
) -> None:
    ran = terminal.run("workflow", "start", str(file), "--detach", "--label", "team=x", "-l", "stage=live")
    listed = terminal.run("workflow", "list", "--label", "team=x", "--output", "json")

    assert (ran.code, listed.code) == (0, 0)
    assert plane.only.head["labels"] == {"team": "x", "stage": "live"}
    assert plane.asked[-1] == (Verb.LIST, {"labels": {"team": "x"}, "limit": 50, "after": None})


@pytest.mark.parametrize("label", ["team", "=x", "te am=x", "team="])
def test_a_wrong_label_is_refused_before_anything_is_sent(
    terminal: Terminal, file: Path, plane: ScriptedPlane, label: str
) -> None:
    ran = terminal.run("workflow", "start", str(file), "--label", label)

    assert (ran.code, plane.asked) == (2, [])
