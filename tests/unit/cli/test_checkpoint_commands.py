"""The commands of checkpoints and of the restore, on a scripted control plane."""

from __future__ import annotations

from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal

LASTING = {"node": "b", "state": "failed", "compensated": False}


def test_checkpoints_are_listed(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    empty = terminal.run("workflow", "get", started, "--checkpoints")
    plane.only.end()

    table = terminal.run("workflow", "get", started, "--checkpoints")

    assert (empty.out, empty.err) == ("", "No node has completed yet.\n")
    assert table.out.splitlines()[0].split() == ["CHECKPOINT", "KIND", "AT", "BY"]
    assert table.out.splitlines()[1].split()[:2] == ["a", "node"]


def test_checkpoint_on_request_is_asked_for_by_its_name(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    ran = terminal.run("workflow", "checkpoint", started, "before-release")

    verb, body = plane.asked[-1]
    assert (ran.code, verb, body["checkpoint"]) == (0, Verb.CHECKPOINT, "before-release")


def test_restore_lists_what_is_undone_and_needs_no_answer_where_all_is(
    terminal: Terminal, started: str, plane: ScriptedPlane
) -> None:
    ran = terminal.run("workflow", "restore", started, "gate", "--by", "ada")

    assert ran.out.splitlines()[1].split(maxsplit=2) == ["a", "completed", "is undone"]
    assert f"{started}: the restore to gate was accepted, by ada." in ran.err
    asked = {"workflow": started, "checkpoint": "gate", "token": "1", "by": "ada"}
    assert plane.asked[-1] == (Verb.RESTORE, asked)


def test_restore_that_leaves_effects_lists_them_first_and_does_nothing_without_an_answer(
    terminal: Terminal, started: str, plane: ScriptedPlane
) -> None:
    plane.lasting.append(LASTING)

    refused = terminal.run("workflow", "restore", started, "gate")
    before = Verb.RESTORE in plane.verbs()
    agreed = terminal.run("workflow", "restore", started, "gate", "--yes")

    assert refused.out.splitlines()[1].split(maxsplit=2) == ["b", "failed", "cannot be undone"]
    assert "What 1 of these nodes did cannot be undone." in refused.err
    assert (refused.code, before) == (1, False)
    assert (agreed.code, plane.verbs()[-1]) == (0, Verb.RESTORE)


def test_dry_run_only_lists(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    plane.lasting.append(LASTING)

    document = terminal.run("workflow", "restore", started, "gate", "--dry-run", "--output", "json").json

    assert document["discarded"][0] == LASTING
    assert Verb.RESTORE not in plane.verbs()


def test_history_tells_of_a_restore(terminal: Terminal, started: str) -> None:
    events = terminal.run("workflow", "get", started, "--history", "--output", "json").json

    assert [(one["agent"], one["reason"]) for one in events if one["event"] == "workflow.restored"] == [("ada", "gate")]
