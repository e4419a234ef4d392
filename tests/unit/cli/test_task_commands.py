"""`coditect task` and `coditect event`: direct tasks, and tasks that the control plane keeps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coditect.broker.topology import base_topology, capability_queues
from coditect.broker.topology_diff import PlannedBroker
from coditect.cli.task import outcome_json
from coditect.cli.terminal import options
from coditect.cli.terminal.options import read_body
from coditect.client.handle import Handle
from coditect.errors import InvalidTask, StreamRestarted, UnknownCapability
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.operations import overview
from coditect.wire import routing
from coditect.wire.tasks import MAX_BODY_BYTES
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import AGENT, ScriptedHandle, Terminal, completed, happening


def test_submit_prints_the_parts_of_a_stream_as_lines(terminal: Terminal) -> None:
    terminal.connections.scripted.parts = ["tea", {"cups": 2}, None]
    terminal.connections.scripted.end = lambda task_id: completed(task_id, b"3")

    ran = terminal.run("task", "submit", "text.write", '"tea"', "--stream")

    assert (ran.code, ran.out) == (0, '"tea"\n{"cups":2}\nnull\n')
    assert terminal.connections.scripted.orders[0].options.stream


def test_a_stream_that_begins_again_is_canceled(terminal: Terminal) -> None:
    terminal.connections.scripted.parts = ["tea", StreamRestarted("The task is executed again", read=1)]

    ran = terminal.run("task", "submit", "text.write", "--stream")

    assert (ran.code, ran.out) == (1, '"tea"\n')
    assert "executed again" in ran.err
    assert terminal.connections.scripted.handles[0].canceled == ["its parts began again"]


def ends(terminal: Terminal, status: Status, reason: str, *, traceback: str = "") -> None:
    failure = Failure(reason, "ValueError", "no such file", traceback, fix="Look again")
    terminal.connections.scripted.end = lambda task_id: Outcome(
        status, b"{}", task_id, task_id, agent_id=AgentId("a"), failure=failure
    )


def test_submit_prints_the_value_on_stdout_and_progress_on_stderr(terminal: Terminal) -> None:
    terminal.connections.scripted.happenings = [happening("task.progress", "task-1", share=0.5, note="half")]

    ran = terminal.run("task", "submit", "code.review", '{"path": "src"}', "-p", "p0", "--agent", "me")

    (order,) = terminal.connections.scripted.orders
    assert (ran.code, ran.json) == (0, {"ok": True})
    assert "   50%  half\n" in ran.err
    assert order.value == b'{"path": "src"}'
    assert (order.options.priority, order.options.pin) == ("p0", "me")


@pytest.mark.parametrize(
    ("status", "reason", "code", "sentence"),
    [
        (Status.FAILED, "handler_error", 1, "The task failed"),
        (Status.CANCELED, "canceled", 1, "The task was canceled"),
        (Status.REJECTED, "invalid_input", 1, "The task was rejected"),
        (Status.FAILED, "expired", 3, "The task failed"),
    ],
)
def test_end_without_a_value_has_its_exit_code_and_fix(
    terminal: Terminal, status: Status, reason: str, code: int, sentence: str
) -> None:
    ends(terminal, status, reason)

    ran = terminal.run("task", "submit", "code.review")
    document = terminal.run("task", "submit", "code.review", "--output", "json")

    assert (ran.code, document.code) == (code, code)
    assert ran.out == ""
    assert sentence in ran.err
    assert "Fix: Look again" in ran.err
    assert document.json["failure"]["reason"] == reason


def test_failure_has_the_place_in_the_handler_and_the_command_that_shows_the_whole(terminal: Terminal) -> None:
    ends(terminal, Status.FAILED, "handler_error", traceback='  File "/own/agent.py", line 7, in review\n')

    ran = terminal.run("task", "submit", "code.review")

    assert "  where: /own/agent.py:7 in review\n" in ran.err
    assert "  traceback: coditect dead get task-1 --capability code.review\n" in ran.err


def test_no_result_in_time_exits_3(terminal: Terminal) -> None:
    terminal.connections.scripted.end = lambda task_id: None

    ran = terminal.run("task", "submit", "code.review", "--wait", "1s")

    assert ran.code == 3
    assert "coditect task cancel" in ran.err


def test_no_wait_prints_the_id(terminal: Terminal) -> None:
    ran = terminal.run("task", "submit", "code.review", "--no-wait")
    document = terminal.run("task", "submit", "code.review", "--no-wait", "--output", "json")

    assert ran.out == "task-1\n"
    assert document.json == {"task_id": "task-2", "status": "submitted"}


def test_body_comes_from_a_file_or_stdin(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_bytes(b"[1]")

    terminal.run("task", "submit", "code.review", f"@{file}")
    terminal.run("task", "submit", "code.review", "-", stdin="[2]")

    assert [order.value for order in terminal.connections.scripted.orders] == [b"[1]", b"[2]"]


def test_bad_body_is_a_usage_error_and_nothing_is_sent(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "big.json"
    file.write_bytes(b'"' + b"x" * MAX_BODY_BYTES + b'"')

    codes = [
        terminal.run("task", "submit", "code.review", body).code
        for body in ("{not json", f"@{file}", f"@{tmp_path}/missing")
    ]

    assert codes == [2, 2, 2]
    assert terminal.connections.scripted.orders == []


def test_unknown_capability_names_the_nearest(terminal: Terminal) -> None:
    terminal.connections.scripted.refusal = UnknownCapability("No agent offers it", nearest=("code.review",))

    ran = terminal.run("task", "submit", "code.revew")

    assert ran.code == 4
    assert "nearest: code.review" in ran.err
    assert "coditect capability list" in ran.err


def test_cancel_asks_the_fleet_and_says_whether_there_is_such_a_task(terminal: Terminal) -> None:
    terminal.register()
    task = Message(b"null", message_id="task-9")

    async def put(broker: PlannedBroker) -> None:
        await broker.declare(base_topology() + capability_queues("code.review"))
        await broker.publish(task, exchange=routing.SUBMIT, routing_key="code.review.p2")

    terminal.broker(put)
    known = terminal.run("task", "cancel", "task-9")
    unknown = terminal.run("task", "cancel", "task-8")

    assert (known.code, unknown.code) == (0, 4)
    assert "task-8 was not found" in unknown.err
    assert terminal.connections.scripted.canceled == ["task-9", "task-8"]


@pytest.mark.parametrize(
    "words",
    [
        ("submit", "code.review"),
        ("submit", "code.review", "--idempotency-key", "k"),
        ("get", "w:task", "--wait", "10m"),
    ],
)
def test_ctrl_c_says_what_goes_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    async def interrupted(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(ScriptedHandle, "outcome", interrupted)
    monkeypatch.setattr(Handle, "outcome", interrupted)
    said: list[str] = []
    monkeypatch.setattr(options, "say", said.append)

    with pytest.raises(asyncio.CancelledError):
        terminal.run("task", *words)

    assert "The task goes on" in said[0]
    assert "coditect task " in said[0]


def test_events_are_followed_up_to_the_count(terminal: Terminal) -> None:
    happenings = [happening("task.completed", f"t{n}", cached=True) for n in range(3)]
    terminal.connections.scripted.happenings = happenings

    lines = terminal.run("event", "tail", "task.*", "--count", "2", "--output", "json").out.splitlines()
    ran = terminal.run("event", "tail")

    assert len(lines) == 2
    assert '"subject": "t0"' in lines[0]
    assert ran.out.count("task.completed") == ran.out.count('{"cached": true}') == 3


def test_a_parent_hears_that_events_are_followed(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    monkeypatch.setenv("CODITECT_READY_FILE", str(ready))

    terminal.run("event", "tail")

    assert ready.exists()


def test_an_event_is_emitted_in_the_user_s_name_and_its_id_printed(terminal: Terminal) -> None:
    ran = terminal.run("event", "emit", "repo.pushed", '{"branch": "main"}', "--subject", "shop", "--by", "ada")
    wrong = terminal.run("event", "emit", "repo.pushed", "[1]")

    assert (ran.code, ran.out) == (0, "event-1\n")
    assert terminal.connections.scripted.emitted == [("repo.pushed", {"branch": "main"}, "shop", "ada")]
    assert (wrong.code, "are a JSON object" in wrong.err) == (2, True)


def test_debug_lets_the_error_through(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODITECT_DEBUG", "1")
    terminal.connections.scripted.refusal = UnknownCapability("No agent offers it")

    with pytest.raises(UnknownCapability):
        terminal.run("task", "submit", "code.revew")


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
    assert "  where: agent.py:7 in review\n" in failed.err
    assert f"  traceback: coditect task get {kept} --output json\n" in failed.err
    assert done.json == {"node": "task"}


def test_cancel_goes_to_the_control_plane(terminal: Terminal, kept: str) -> None:
    """The client that the command asks is the one that tells both kinds apart by the id."""
    ran = terminal.run("task", "cancel", kept)

    assert "accepted by the control plane" in ran.err
    assert terminal.connections.scripted.canceled == [kept]


def test_unknown_durable_task_exits_4(terminal: Terminal) -> None:
    assert terminal.run("task", "get", "01890a5d-ac96-774b-bcce-b302099a8057:task").code == 4


def test_deadline_of_a_kept_task_is_the_node_s_and_no_agent_is_preferred(
    terminal: Terminal, plane: ScriptedPlane
) -> None:
    ran = terminal.run("task", "submit", "code.review", "--detach", "--deadline", "1m", "--agent", "me")

    ((_, body),) = plane.asked
    assert (ran.code, body["nodes"]["task"]["deadline"]) == (0, "1m")
    assert "--agent is left out" in ran.err


def test_a_delay_or_an_instant_makes_it_durable_and_later(terminal: Terminal, plane: ScriptedPlane) -> None:
    ran = [
        terminal.run("task", "submit", "code.review", "--delay", "5m", "--output", "json"),
        terminal.run("task", "submit", "code.review", "--at", "2030-12-24T08:00:00+01:00", "--detach"),
    ]

    assert [task.code for task in ran] == [0, 0]
    assert [kept.head["nodes"]["task"]["delay"] for kept in plane.kept.values()] == ["5m", "2030-12-24T07:00:00+00:00"]


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


def test_body_is_bytes_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "photo"
    file.write_bytes(b"\xff\x00")

    assert read_body(f"@{file}", binary=True) == b"\xff\x00"
    with pytest.raises(InvalidTask):
        read_body(f"@{file}")


def test_value_of_bytes_is_base64_in_json() -> None:
    document = outcome_json("task", Outcome(Status.COMPLETED, b"\xff\x00", "task", None, binary=True))

    assert (document["value"], document["value_base64"]) == (None, "/wA=")
