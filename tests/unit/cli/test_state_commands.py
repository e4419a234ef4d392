"""`coditect state`: values by key that agents and clients share."""

from __future__ import annotations

from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal


def test_a_value_is_written_read_listed_and_deleted(terminal: Terminal, plane: ScriptedPlane) -> None:
    put = terminal.run("state", "put", "team", "plan", '{"goal": "ship it"}', "--if-version", "0")
    got = terminal.run("state", "get", "team", "plan")
    whole = terminal.run("state", "get", "team", "plan", "--output", "json").json
    listed = terminal.run("state", "list", "team").out.splitlines()
    deleted = terminal.run("state", "delete", "team", "plan")
    gone = terminal.run("state", "get", "team", "plan")

    assert (put.out, got.json) == ("1\n", {"goal": "ship it"})
    assert (whole["version"], whole["value"]) == (1, {"goal": "ship it"})
    assert listed[1].split()[:2] == ["plan", "1"]
    assert deleted.err == "plan was deleted.\n"
    assert (gone.code, "This key has no value" in gone.err) == (4, True)
    assert [body["if_version"] for verb, body in plane.asked if verb is Verb.STATE_PUT and "value" in body] == [0]


def test_a_space_is_named_or_that_of_a_workflow(terminal: Terminal, plane: ScriptedPlane) -> None:
    for space in ("team", "workflow:01890a5d-ac96-774b-bcce-b302099a8057"):
        terminal.run("state", "list", space)

    spaces = ["space:team", "workflow:01890a5d-ac96-774b-bcce-b302099a8057"]
    assert [body["space"] for verb, body in plane.asked if verb is Verb.STATE_LIST] == spaces


def test_each_version_that_is_seen_is_a_line(terminal: Terminal, plane: ScriptedPlane) -> None:
    plane.values["plan"] = [1]

    line = terminal.run("state", "get", "team", "plan", "--watch", "--count", "1").out
    document = terminal.run("state", "get", "team", "plan", "--watch", "--count", "1", "--output", "json").json

    assert line.rstrip().endswith("[1]")
    assert (document["version"], document["value"]) == (1, [1])
