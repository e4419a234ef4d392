"""`coditect schedule` against a scripted control plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "nightly.yaml"
    path.write_text("name: nightly\nnodes:\n  a: {task: some.work}\n", encoding="utf-8")
    return str(path)


def test_a_schedule_is_made_listed_and_shown(terminal: Terminal, plane: ScriptedPlane, file: str) -> None:
    made = terminal.run("schedule", "create", "n", file, "--cron", "30 2 * * *", "--zone", "Europe/Paris")
    listed = terminal.run("schedule", "list")
    shown = terminal.run("schedule", "get", "n", "--output", "json").json
    body = next(body for verb, body in plane.asked if verb is Verb.SCHEDULE_CREATE)

    assert "30 2 * * * (Europe/Paris)" in made.out
    assert listed.out.splitlines()[1].split()[:3] == ["n", "nightly", "active"]
    assert (shown["cron"], shown["upcoming"]) == ("30 2 * * *", ["2026-01-01T00:00:00+00:00"])
    assert (body["workflow"]["name"], body["input"], body["replace"], "every" in body) == ("nightly", {}, False, False)


def test_a_schedule_is_paused_resumed_run_and_deleted(terminal: Terminal, plane: ScriptedPlane, file: str) -> None:
    terminal.run("schedule", "create", "n", file, "--every", "1m")

    paused = terminal.run("schedule", "pause", "n")
    ran = terminal.run("schedule", "run", "n")
    resumed = terminal.run("schedule", "resume", "n")
    deleted = terminal.run("schedule", "delete", "n")
    gone = terminal.run("schedule", "get", "n")

    assert paused.err == "n is paused.\n"
    assert resumed.err.startswith("n is active, its next tick is ")
    assert (ran.code, ran.out) == (0, "w\n")
    assert deleted.err == "n was deleted.\n"
    assert gone.code == 4


def test_run_that_starts_nothing_says_why(terminal: Terminal, plane: ScriptedPlane, file: str) -> None:
    terminal.run("schedule", "create", "n", file, "--every", "1m", "--overlap", "skip")

    refused = terminal.run("schedule", "run", "n")

    assert (refused.code, refused.err) == (1, "n: nothing was started: an earlier run goes on.\n")


def test_no_schedules_say_so(terminal: Terminal, plane: ScriptedPlane) -> None:
    assert terminal.run("schedule", "list").err == "There is no schedule.\n"
