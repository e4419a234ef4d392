"""`coditect schedule`, `trigger` and `state` against a scripted control plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.model.result import Failure, Outcome, Status
from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal, completed


@pytest.fixture
def flow(tmp_path: Path) -> str:
    path = tmp_path / "nightly.yaml"
    path.write_text("name: nightly\nnodes:\n  a: {task: some.work}\n", encoding="utf-8")
    return str(path)


def test_a_schedule_is_made_listed_and_shown(terminal: Terminal, plane: ScriptedPlane, flow: str) -> None:
    made = terminal.run("schedule", "create", "n", flow, "--cron", "30 2 * * *", "--zone", "Europe/Paris")
    listed = terminal.run("schedule", "list")
    shown = terminal.run("schedule", "get", "n", "--output", "json").json
    body = next(body for verb, body in plane.asked if verb is Verb.SCHEDULE_CREATE)

    assert "30 2 * * * (Europe/Paris)" in made.out
    assert listed.out.splitlines()[1].split()[:3] == ["n", "nightly", "active"]
    assert (shown["cron"], shown["upcoming"]) == ("30 2 * * *", ["2026-01-01T00:00:00+00:00"])
    assert (body["workflow"]["name"], body["input"], body["replace"], "every" in body) == ("nightly", {}, False, False)


def test_a_schedule_is_paused_resumed_run_and_deleted(terminal: Terminal, flow: str) -> None:
    terminal.run("schedule", "create", "n", flow, "--every", "1m")

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


def test_run_that_starts_nothing_says_why(terminal: Terminal, flow: str) -> None:
    terminal.run("schedule", "create", "n", flow, "--every", "1m", "--overlap", "skip")

    refused = terminal.run("schedule", "run", "n")

    assert (refused.code, refused.err) == (1, "n: nothing was started: an earlier run goes on.\n")


def test_a_trigger_is_added_and_listed(terminal: Terminal, plane: ScriptedPlane, flow: str) -> None:
    options = ("--when", "event.data.ok", "--input", '{"a": {"$from": "event.id"}}')
    added = terminal.run("trigger", "create", "t", "repo.*", flow, *options)
    listed = terminal.run("trigger", "list")
    body = next(body for verb, body in plane.asked if verb is Verb.TRIGGER_ADD)

    assert "event.data.ok" in added.out
    assert listed.out.splitlines()[1].split()[:6] == ["t", "repo.*", "nightly", "active", "0", "0"]
    assert (body["workflow"]["name"], body["input"]) == ("nightly", {"a": {"$from": "event.id"}})
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


@pytest.mark.parametrize("text", ["- shop", "shop: up", "shop: {name: till}"])
def test_a_file_of_something_else_is_refused(
    terminal: Terminal, plane: ScriptedPlane, tmp_path: Path, text: str
) -> None:
    (tmp_path / "heal.yaml").write_text(text)

    assert terminal.run("schedule", "heal", "--file", str(tmp_path / "heal.yaml")).code != 0
    assert plane.asked == []


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
