"""`coditect trigger` against a scripted control plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal


@pytest.fixture
def flow(tmp_path: Path) -> str:
    path = tmp_path / "build.yaml"
    path.write_text("name: build\nnodes:\n  a: {task: some.work}\n", encoding="utf-8")
    return str(path)


def test_a_trigger_is_added_and_listed(terminal: Terminal, plane: ScriptedPlane, flow: str) -> None:
    options = ("--when", "event.data.ok", "--input", '{"a": {"$from": "event.id"}}')
    added = terminal.run("trigger", "create", "t", "repo.*", flow, *options)
    listed = terminal.run("trigger", "list")
    body = next(body for verb, body in plane.asked if verb is Verb.TRIGGER_ADD)

    assert "event.data.ok" in added.out
    assert listed.out.splitlines()[1].split()[:6] == ["t", "repo.*", "build", "active", "0", "0"]
    assert (body["workflow"]["name"], body["input"]) == ("build", {"a": {"$from": "event.id"}})
    assert (body["event"], body["when"], body["paused"], "signal" in body) == ("repo.*", "event.data.ok", False, False)


def test_a_trigger_may_send_a_signal(terminal: Terminal, plane: ScriptedPlane) -> None:
    added = terminal.run("trigger", "create", "t", "order.paid", "--signal", "paid", "--to", "event.data.order")
    body = next(body for verb, body in plane.asked if verb is Verb.TRIGGER_ADD)

    assert "signal paid" in added.out
    assert body == {
        "trigger": "t", "event": "order.paid", "signal": "paid", "to": "event.data.order", "paused": False
    }  # fmt: skip


def test_a_trigger_is_paused_resumed_and_deleted(terminal: Terminal, plane: ScriptedPlane, flow: str) -> None:
    terminal.run("trigger", "create", "t", "repo.pushed", flow)

    said = [terminal.run("trigger", verb, "t").err for verb in ("pause", "resume", "delete")]
    gone = terminal.run("trigger", "delete", "t")

    assert said == ["t is paused.\n", "t is active.\n", "t was deleted.\n"]
    assert (gone.code, plane.triggers) == (4, {})
