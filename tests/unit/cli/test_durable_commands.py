"""`coditect task` for tasks that the control plane keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.operations import overview
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import AGENT, Terminal


@pytest.fixture
def plane(terminal: Terminal) -> ScriptedPlane:
    return terminal.connections.plane


@pytest.fixture
def kept(terminal: Terminal, plane: ScriptedPlane) -> str:
    """The id of a durable task that has not ended."""
    plane.at_once = False
    return terminal.run("task", "submit", "code.review", '{"path": "src"}', "--detach", "--timeout", "2h").out.strip()


def test_detached_task_is_kept_and_its_id_printed(terminal: Terminal, kept: str, plane: ScriptedPlane) -> None:
    assert kept == f"{plane.only.head['workflow']}:task"
    assert plane.only.nodes["task"]["input"] == {"$literal": {"path": "src"}}
    assert plane.only.head["nodes"]["task"]["timeout"] == "2h"
    assert terminal.connections.scripted.orders == []


def test_key_makes_it_durable_and_the_value_is_waited_for(terminal: Terminal, plane: ScriptedPlane) -> None:
    first = terminal.run("task", "submit", "code.review", "--idempotency-key", "k")
    second = terminal.run("task", "submit", "code.review", "--idempotency-key", "k", "--output", "json")

    assert (first.code, first.json) == (0, {"node": "task"})
    assert ("already" in first.err, "already" in second.err) == (False, True)
    assert (second.json["status"], second.json["agent"]) == ("completed", "worker-00000001")
    assert len(plane.kept) == 1


@pytest.mark.parametrize(
    "verb", [("submit", "code.review"), ("submit", "code.review", "--idempotency-key", "k"), ("get", "1:task")]
)
def test_a_wait_that_is_no_duration_is_refused_before_anything_is_sent(
    terminal: Terminal, plane: ScriptedPlane, verb: tuple[str, ...]
) -> None:
    ran = terminal.run("task", *verb, "--wait", "10min")

    assert (ran.code, plane.asked, terminal.connections.scripted.orders) == (2, [], [])
    assert "5m" in ran.err


def test_failure_of_a_durable_task_names_the_command_that_shows_the_whole(
    terminal: Terminal, kept: str, plane: ScriptedPlane
) -> None:
    plane.only.end("failed")

    told = terminal.run("task", "get", kept, "--wait", "10m")

    assert "  where: agent.py:7 in review\n" in told.err
    assert f"  traceback: coditect task get {kept} --output json\n" in told.err


def test_get_says_where_it_is_and_then_what_came_of_it(terminal: Terminal, kept: str, plane: ScriptedPlane) -> None:
    before = terminal.run("task", "get", kept, "--output", "json").json
    plane.only.end()
    after = terminal.run("task", "get", kept)
    document = terminal.run("task", "get", kept, "--output", "json").json

    assert (before["status"], "value" in before) == ("ready", False)
    assert '"node": "task"' in after.out
    assert (document["status"], document["value"]) == ("completed", {"node": "task"})
    assert [attempt["agent"] for attempt in document["attempts"]] == ["worker-00000001"]


def test_wait_prints_the_value_or_exits_as_the_task_did(terminal: Terminal, kept: str, plane: ScriptedPlane) -> None:
    late = terminal.run("task", "get", kept, "--wait", "30ms")
    plane.only.end("failed")
    failed = terminal.run("task", "get", kept, "--wait", "10m")
    plane.only.end()
    plane.only.failures.clear()
    done = terminal.run("task", "get", kept, "--wait", "10m")

    assert (late.code, failed.code, done.code) == (3, 1, 0)
    assert "no such file" in failed.err
    assert "Fix: Look again" in failed.err
    assert done.json == {"node": "task"}


def test_cancel_goes_to_the_control_plane(terminal: Terminal, kept: str, plane: ScriptedPlane) -> None:
    """The client that the command asks is the one that tells both kinds apart by the id."""
    ran = terminal.run("task", "cancel", kept)

    assert "accepted by the control plane" in ran.err
    assert terminal.connections.scripted.canceled == [kept]


@pytest.mark.parametrize("options", [(), ("--wait", "10m")])
def test_a_direct_task_cannot_be_asked_for_and_the_way_out_is_named(
    terminal: Terminal, options: tuple[str, ...]
) -> None:
    ran = terminal.run("task", "get", "01890a5d-ac96-774b-bcce-b302099a8057", *options)

    assert ran.code == 2
    assert "--detach" in ran.err


def test_unknown_durable_task_exits_4(terminal: Terminal) -> None:
    assert terminal.run("task", "get", "01890a5d-ac96-774b-bcce-b302099a8057:task").code == 4


def test_agent_is_not_preferred(terminal: Terminal) -> None:
    told = terminal.run("task", "submit", "code.review", "--detach", "--agent", "me")

    assert (told.code, "--agent is left out" in told.err) == (0, True)


def test_deadline_is_the_node_s(terminal: Terminal, plane: ScriptedPlane) -> None:
    told = terminal.run("task", "submit", "code.review", "--detach", "--deadline", "1m")

    ((_, body),) = plane.asked
    assert (told.code, body["nodes"]["task"]["deadline"]) == (0, "1m")


def test_a_delay_or_an_instant_makes_it_durable_and_later(terminal: Terminal, plane: ScriptedPlane) -> None:
    ran = [
        terminal.run("task", "submit", "code.review", "--delay", "5m", "--output", "json"),
        terminal.run("task", "submit", "code.review", "--at", "2030-12-24T08:00:00+01:00", "--detach"),
    ]

    assert [one.code for one in ran] == [0, 0]
    assert [one.head["nodes"]["task"]["delay"] for one in plane.kept.values()] == ["5m", "2030-12-24T07:00:00+00:00"]


@pytest.mark.parametrize("option", [("--delay", "soon"), ("--at", "tomorrow"), ("--at", "2030-12-24T08:00:00")])
def test_a_wrong_delay_is_refused_before_anything_is_sent(
    terminal: Terminal, plane: ScriptedPlane, option: tuple[str, str]
) -> None:
    ran = terminal.run("task", "submit", "code.review", *option)

    assert (ran.code, plane.asked, terminal.connections.scripted.orders) == (2, [], [])


RUNS = {"task_id": "direct-1", "capability": "code.review", "priority": "p1", "attempt": 2, "published_at_ms": 1}


def test_durable_tasks_and_the_direct_ones_that_run_are_listed(
    served: Terminal, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = served.connections.plane
    durable = served.run("task", "submit", "code.review", "--detach").out.strip()
    plane.at_once = False
    served.run("workflow", "start", str(file), "--detach")
    served.register()

    async def asked(*_: object, **__: object) -> list[dict[str, object]]:
        return [{"agent_id": AGENT, "tasks": [RUNS, RUNS | {"task_id": durable, "workflow": durable[:-5]}]}]

    monkeypatch.setattr(overview, "ask_agents", asked)
    rows = served.run("task", "list", "--output", "json").json

    assert [(row["task_id"], row["state"], row["durable"]) for row in rows] == [
        (durable, "completed", True),
        ("direct-1", "working", False),
    ]
    assert (rows[1]["agent"], rows[1]["attempt"]) == (AGENT, 2)


def test_without_a_dispatcher_the_direct_tasks_are_listed_and_a_note_says_so(terminal: Terminal) -> None:
    ran = terminal.run("task", "list")

    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "No tasks.\nNo dispatcher runs: durable tasks are not seen.\n"
