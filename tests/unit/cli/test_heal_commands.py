"""`coditect schedule heal` against a scripted control plane, and an agent whose look at a service is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.model.result import Failure, Outcome, Status
from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal, completed


def made(plane: ScriptedPlane) -> list[dict[str, object]]:
    return [body for verb, body in plane.asked if verb is Verb.SCHEDULE_CREATE]


def test_a_service_is_looked_at_and_watched_by_a_schedule_of_the_pattern(
    terminal: Terminal, plane: ScriptedPlane
) -> None:
    terminal.connections.scripted.end = lambda task: completed(task, b'{"well": false, "why": "its process is gone"}')
    options = (
        "--http",
        "http://a/health",
        "--log",
        "a.log=x=1",
        "--metric",
        'http://a/m q{n="a b"} > 1e2',
        "--every",
        "2s",
    )
    words = ("shop", "--folder", "services/shop", *options, "--with", "rounds=2")
    added = terminal.run("schedule", "heal", *words)
    (body,) = made(plane)
    (look,) = terminal.connections.scripted.orders

    service = {
        "name": "shop",
        "folder": "services/shop",
        "every_seconds": 2.0,
        "signs": [
            {"http": "http://a/health"},
            {"log": "a.log", "pattern": "x=1"},
            {"metric": 'q{n="a b"}', "url": "http://a/m", "above": 100.0},
        ],
    }
    assert (look.capability, look.value) == ("service.look", {"service": service})
    trouble, missing = added.err.splitlines()
    assert trouble == "shop: its process is gone"
    assert missing.startswith("No agent offers cause.exclusion, cause.rules, cause.scores, results.merge, ")
    assert "service.fix, service.verify, service.watch yet: start some" in missing
    assert added.out.splitlines()[1].split()[:3] == ["shop", "folder", "services/shop"]
    assert (body["schedule"], body["input"], body["overlap"]) == ("heal-shop", {"service": service}, "skip")
    nodes = body["workflow"]["nodes"]  # type: ignore[index]
    assert ("fix_2" in nodes, "fix_3" in nodes) == (True, False)
    assert plane.verbs()[-5:].count(Verb.SCHEDULE_RUN) == 1


def test_a_file_has_several_services_and_one_is_removed(
    terminal: Terminal, plane: ScriptedPlane, tmp_path: Path
) -> None:
    file = tmp_path / "heal.yaml"
    file.write_text("shop: {command: systemctl shop}\ntill:\n  deployment: till\n  signs: [{http: 'http://till/'}]\n")

    added = terminal.run("schedule", "heal", "--file", str(file))
    listed = terminal.run("schedule", "list", "--heal", "--output", "json").json
    again = terminal.run("schedule", "heal", "shop", "--folder", "shop")
    plane.values["shop"] = {"open": True}
    replaced = terminal.run("schedule", "heal", "shop", "--folder", "shop", "--replace")
    known = dict(plane.values)
    removed = terminal.run("schedule", "delete", "heal-shop")
    gone = terminal.run("schedule", "delete", "heal-shop")

    assert added.err.startswith("shop: it is well\ntill: it is well\n")
    assert [(row["name"], row["state"]) for row in listed] == [("shop", "starting"), ("till", "starting")]
    assert listed[1]["service"] == {"deployment": "till", "signs": [{"http": "http://till/"}], "name": "till"}
    assert (again.code, "coditect schedule heal --replace" in again.err, replaced.code) == (2, True, 0)
    assert known == {}
    assert (removed.err, gone.code) == ("heal-shop was deleted.\n", 4)
    assert [*plane.schedules] == ["heal-till"]


@pytest.mark.parametrize(
    ("run", "record", "state"),
    [
        ("running", {}, "watched"),
        ("running", {"open": True}, "healing"),
        ("completed", {"open": True}, "unwell"),
        ("failed", {"open": True}, "failed"),
        ("completed", {"open": False}, "watched"),
    ],
)
def test_the_list_says_what_becomes_of_a_service(
    terminal: Terminal, plane: ScriptedPlane, started: str, run: str, record: dict[str, object], state: str
) -> None:
    terminal.run("schedule", "heal", "shop", "--folder", "shop")
    if run == "running":
        next(iter(plane.only.nodes.values()))["state"] = "completed"
    else:
        plane.only.end(run)
    plane.schedules["heal-shop"]["last_run"] = started
    plane.values["shop"] = record | {"healed_at": [1, 1_800_000_000.5]}

    (row,) = terminal.run("schedule", "list", "--heal", "--output", "json").json
    listed = terminal.run("schedule", "list", "--heal").out
    paused = terminal.run("schedule", "pause", "heal-shop")

    assert (row["state"], row["healed"], row["last_run"]) == (state, 1_800_000_000_500, started)
    assert "2027-01-15" in listed
    assert paused.code == 0
    assert terminal.run("schedule", "list", "--heal", "--output", "json").json[0]["state"] == "paused"


def test_what_an_agent_refuses_is_not_watched(terminal: Terminal, plane: ScriptedPlane) -> None:
    failure = Failure("invalid_input", "ValidationError", "a service has one of folder, command and deployment")
    terminal.connections.scripted.end = lambda task: Outcome(Status.REJECTED, b"", task, task, failure=failure)

    refused = terminal.run("schedule", "heal", "shop")

    assert (refused.code, made(plane)) == (1, [])
    assert "a service has one of folder" in refused.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Name one service, or a file"),
        (("shop", "--file", "heal.yaml"), "Name one service, or a file"),
        (("--file", "heal.yaml", "--folder", "a"), "A file says all of its services"),
        (("--file", "missing.yaml"), "There is no such file"),
        (("shop", "--log", "a.log"), "A log is FILE=PATTERN"),
        (("shop", "--metric", "http://a/m q"), "A metric is 'URL NAME > VALUE'"),
    ],
)
def test_a_mistake_is_said_before_anything_is_asked(
    terminal: Terminal, plane: ScriptedPlane, words: tuple[str, ...], says: str
) -> None:
    refused = terminal.run("schedule", "heal", *words)

    assert refused.code != 0
    assert says in refused.err
    assert plane.asked == []


@pytest.mark.parametrize("text", ["- shop", "shop: up", "shop: {name: till}"])
def test_a_file_of_something_else_is_refused(
    terminal: Terminal, plane: ScriptedPlane, tmp_path: Path, text: str
) -> None:
    (tmp_path / "heal.yaml").write_text(text)

    assert terminal.run("schedule", "heal", "--file", str(tmp_path / "heal.yaml")).code != 0
    assert plane.asked == []


def test_no_service_says_so(terminal: Terminal, plane: ScriptedPlane) -> None:
    assert terminal.run("schedule", "list", "--heal").err == "No service is watched.\n"


def test_a_service_whose_last_run_is_not_kept_any_more_is_listed_and_removed(
    terminal: Terminal, plane: ScriptedPlane
) -> None:
    terminal.run("schedule", "heal", "shop", "--folder", "shop")
    plane.schedules["heal-shop"]["last_run"] = "long-ago"
    plane.values["shop"] = {"open": True}

    listed = terminal.run("schedule", "list", "--heal", "--output", "json").json
    removed = terminal.run("schedule", "delete", "heal-shop")

    assert [row["state"] for row in listed] == ["starting"]
    assert (removed.code, plane.values) == (0, {})
