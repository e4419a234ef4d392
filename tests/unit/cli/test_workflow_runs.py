"""The commands of workflows that run, on a scripted control plane."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from coditect.cli.terminal.progress import Lines, _picture, counted
from coditect.wire.control import Verb
from coditect.workflow.rows import WorkflowRow
from tests.control_plane import ScriptedPlane, workflow_row
from tests.unit.cli.conftest import FLOW
from tests.unit.cli.scene import Terminal


def test_run_shows_the_beginning_of_a_long_value_and_says_so(
    terminal: Terminal, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coditect.cli.start.MOST_SHOWN", 5)

    ran = terminal.run("workflow", "start", str(file))

    assert "5 characters shown of 17; --output json has them all." in ran.err


AtEachLook = Callable[[Callable[[], None]], None]


@pytest.fixture
def at_each_look(plane: ScriptedPlane, monkeypatch: pytest.MonkeyPatch) -> AtEachLook:
    """Lets something happen to a workflow that runs whenever the command has looked at it."""

    def follow(work: Callable[[], None]) -> None:
        plane.at_once = False
        monkeypatch.setattr(Lines, "show", lambda lines, row: work())

    return follow


def test_run_names_each_question_that_waits_once_and_the_command_that_answers(
    terminal: Terminal, file: Path, plane: ScriptedPlane, at_each_look: AtEachLook
) -> None:
    looks = iter([*["working"] * 2, *["awaiting_approval"] * 4])

    def look() -> None:
        state = next(looks, None)
        if state is None:
            plane.only.end()
        else:
            plane.only.nodes["gate"]["state"] = state

    at_each_look(look)
    ran = terminal.run("workflow", "start", str(file))

    (run,) = plane.kept
    assert ran.code == 0
    assert ran.err.count("gate waits for an answer: Ship it?") == 1
    assert f"coditect approval grant {run}:gate\n" in ran.err


def test_show_has_the_question_of_a_node_that_waits(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    plane.only.nodes["gate"]["state"] = "awaiting_approval"

    assert "Ship it?" in terminal.run("workflow", "get", started).out


def test_run_follows_to_the_end_and_lists_every_node(terminal: Terminal, file: Path, plane: ScriptedPlane) -> None:
    ran = terminal.run("workflow", "start", str(file), "--input", '{"path": "src"}', "--idempotency-key", "k")

    nodes, *_, value = ran.out.split("\n\n")
    header, *rows = nodes.splitlines()
    assert ran.code == 0
    assert header.split() == ["NODE", "STATE", "ATTEMPT", "AGENT", "STARTED", "TOOK", "WHY"]
    assert [row.split()[:4] for row in rows] == [[n, "completed", "1", "worker-00000001"] for n in ("a", "gate", "b")]
    assert "0.990 s" in rows[0]
    assert value.split() == ["value", "{", '"node":', '"b"', "}"]
    assert "completed: 3 of 3 ended (3 completed)" in ran.err
    assert (plane.only.head["input"], plane.only.head["key"]) == ({"path": "src"}, "k")


def test_run_as_json_has_the_value_and_the_nodes_and_nothing_else(terminal: Terminal, file: Path) -> None:
    ran = terminal.run("workflow", "start", str(file), "--output", "json")

    assert (ran.code, ran.json["state"], ran.json["value"]) == (0, "completed", {"node": "b"})
    assert [node["name"] for node in ran.json["nodes"]] == ["a", "gate", "b"]
    assert ran.json["nodes"][2]["after"] == ["a", "gate"]


def test_run_that_is_detached_prints_the_id(terminal: Terminal, file: Path, plane: ScriptedPlane) -> None:
    ran = terminal.run("workflow", "start", str(file), "--detach")
    document = terminal.run("workflow", "start", str(file), "--detach", "--output", "json")

    assert [ran.out.strip(), document.json["workflow"]] == list(plane.kept)
    assert (document.json["state"], document.json["new"]) == ("accepted", True)


@pytest.mark.parametrize(("at_once", "state"), [(True, "ended: completed"), (False, "still running")])
def test_run_with_a_known_key_says_which_workflow_has_it_and_how_that_is(
    terminal: Terminal, file: Path, plane: ScriptedPlane, at_once: bool, state: str
) -> None:
    plane.at_once = at_once
    command = ("workflow", "start", str(file), "--idempotency-key", "k")

    first = terminal.run(*command, "--detach")
    again = terminal.run(*command, "--detach")
    document = terminal.run(*command, "--detach", "--output", "json")
    plane.only.end()
    followed = terminal.run(*command)

    assert "already" not in first.err
    assert again.out == first.out
    assert f"already accepted as {again.out.strip()}, {state}" in again.err
    assert document.json == {"workflow": again.out.strip(), "state": state.rpartition(" ")[2], "new": False}
    assert "already accepted as" in followed.err
    assert " accepted: good" not in followed.err
    assert followed.code == 0


@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_run_that_does_not_complete_exits_1_and_names_the_nodes_and_the_way_on(
    terminal: Terminal, file: Path, plane: ScriptedPlane, end: str, at_each_look: AtEachLook
) -> None:
    at_each_look(lambda: plane.only.end(end, a="completed"))

    ran = terminal.run("workflow", "start", str(file))

    assert ran.code == 1
    assert f"Error: The workflow {'failed' if end == 'failed' else 'was canceled'}." in ran.err
    assert "nodes: gate, b" in ran.err
    assert f"coditect workflow resume {plane.only.head['workflow']}" in ran.err


def test_run_that_failed_names_the_first_cause_first(
    terminal: Terminal, file: Path, plane: ScriptedPlane, at_each_look: AtEachLook
) -> None:
    def fail() -> None:
        kept = plane.only
        kept.end("failed", gate="canceled")
        kept.nodes["gate"] |= {"reason": "predecessor", "fence": 0}
        kept.nodes["b"] |= {"reason": "predecessor", "fence": 0, "message": "", "finished_at": 1}

    at_each_look(fail)
    error = terminal.run("workflow", "start", str(file)).err

    assert "Error: The workflow failed.\n  cause: a failed: no such file; 2 nodes did not run\n" in error


def test_run_whose_map_failed_names_the_element_that_failed_first(
    terminal: Terminal, file: Path, plane: ScriptedPlane, at_each_look: AtEachLook
) -> None:
    def fail() -> None:
        kept = plane.only
        kept.end("failed", a="completed", gate="completed")
        elements = {name: kept.nodes["b"] | {"name": name, "kind": "task"} for name in ("b[12]", "b[13]")}
        elements["b[13]"] |= {"state": "canceled", "reason": "canceled", "fence": 0}
        kept.nodes["b"] |= {"reason": "element", "message": "an element failed", "finished_at": 1}
        kept.nodes |= elements

    at_each_look(fail)
    error = terminal.run("workflow", "start", str(file)).err

    assert "Error: The workflow failed.\n  cause: b[12] failed: no such file; 1 node did not run\n" in error


def test_run_that_takes_too_long_exits_3_and_goes_on(terminal: Terminal, file: Path, plane: ScriptedPlane) -> None:
    plane.at_once = False

    ran = terminal.run("workflow", "start", str(file), "--wait", "50ms")

    assert ran.code == 3
    assert "coditect workflow get" in ran.err
    assert Verb.CANCEL not in plane.verbs()


@pytest.mark.parametrize("text", [FLOW.replace("[a]", "[c]", 1), FLOW.replace("code.review", "code.reviews")])
def test_run_of_what_cannot_run_is_a_usage_error_with_its_place(terminal: Terminal, file: Path, text: str) -> None:
    file.write_text(text)

    ran = terminal.run("workflow", "start", str(file))

    assert ran.code == 2
    assert "at: nodes." in ran.err
    assert "Fix: " in ran.err


def test_run_without_a_control_plane_says_how_to_start_one(
    terminal: Terminal, file: Path, plane: ScriptedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coditect.client.workflows.SUBMIT_SECONDS", 0.5)
    plane.ignores = 1_000

    ran = terminal.run("workflow", "start", str(file))

    assert ran.code == 1
    assert "coditect dispatcher run" in ran.err


def test_check_and_run_say_that_a_map_gives_no_elements(terminal: Terminal, file: Path) -> None:
    for words in (("check",), ("start", "--detach")):
        assert "b gives {} to each task; `input: {$from: item}`" in terminal.run("workflow", *words, str(file)).err


def test_list_shows_what_there_is_by_state(terminal: Terminal, started: str) -> None:
    table = terminal.run("workflow", "list")
    running = terminal.run("workflow", "list", "--state", "running", "--output", "json")
    failed = terminal.run("workflow", "list", "--state", "failed")

    assert table.out.splitlines()[1].split()[:4] == [started, "good", "running", "3"]
    assert [row["workflow"] for row in running.json] == [started]
    assert (failed.out, failed.err) == ("", "No workflows.\n")


def test_show_lists_every_attempt_with_agent_times_and_error(
    terminal: Terminal, started: str, plane: ScriptedPlane
) -> None:
    plane.only.end("failed", a="completed")

    ran = terminal.run("workflow", "get", started)
    document = terminal.run("workflow", "get", started, "--output", "json").json

    assert ran.code == 0
    fields, nodes, attempts = ran.out.split("\n\n")
    assert "state     failed" in fields
    assert "handler_error: no such file" in nodes
    assert [line.split()[:5] for line in attempts.splitlines()[2:]] == [
        [name, "1", "1", "worker-00000001", "failed"] for name in ("gate", "b")
    ]
    assert document["attempts"][2]["message"] == "no such file"
    assert (document["attempts"][0]["started_at_ms"], document["attempts"][0]["publication"]) == (1_800_000_000_010, 7)


def test_show_of_a_node_has_its_value_or_failure(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    running = terminal.run("workflow", "get", started, "--node", "a", "--output", "json").json
    plane.only.end("failed", a="completed")

    value = terminal.run("workflow", "get", started, "--node", "a")
    failure = terminal.run("workflow", "get", started, "--node", "b")
    document = terminal.run("workflow", "get", started, "--node", "b", "--output", "json").json

    assert "value" not in running
    assert running["input"] == {"of": "a"}
    assert '"of": "a"' in value.out
    assert '"node": "a"' in value.out
    assert "no such file" in failure.out
    assert "Traceback" in failure.out
    assert [node["name"] for node in document["nodes"]] == ["b"]
    assert document["failure"]["fix"] == "Look again"


@pytest.mark.parametrize("words", [("get",), ("cancel",), ("pause",), ("resume",)], ids=" ".join)
def test_a_workflow_that_is_not_there_exits_4(terminal: Terminal, words: tuple[str, ...]) -> None:
    ran = terminal.run("workflow", *words, "01890a5d-ac96-774b-bcce-b302099a8057")

    assert ran.code == 4
    assert "Fix: coditect workflow list" in ran.err


def test_cancel_pause_and_resume_tell_what_follows(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    paused = terminal.run("workflow", "pause", started)
    resumed = terminal.run("workflow", "resume", started)
    canceled = terminal.run("workflow", "cancel", started, "--reason", "not needed")

    assert [ran.err.split()[-1] for ran in (paused, resumed, canceled)] == ["paused.", "running.", "canceled."]
    assert plane.only.reason == "not needed"


def test_approvals_are_listed_granted_and_denied(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    plane.only.nodes["gate"]["state"] = "awaiting_approval"

    table = terminal.run("approval", "list")
    document = terminal.run("approval", "list", "--output", "json").json
    granted = terminal.run("approval", "grant", f"{started}:gate", "--by", "ada", "--comment", "fine")
    again = terminal.run("approval", "deny", f"{started}:gate")
    none = terminal.run("approval", "list")

    assert table.out.splitlines()[1].split()[:2] == [f"{started}:gate", "good"]
    assert document[0]["question"] == "Ship it?"
    assert f"{started}:gate was granted by ada." in granted.err
    assert (Verb.ANSWER, {"workflow": started, "node": "gate", "granted": True, "by": "ada", "comment": "fine"}) in (
        plane.asked
    )
    assert (again.code, "This node asks for no approval" in again.err) == (2, True)
    assert (none.out, none.err) == ("", "No approval is open.\n")


def test_what_is_approved_stands_beside_the_question(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    plane.only.nodes["gate"]["state"] = "awaiting_approval"
    plane.about = {"labels": {"team": "blue"}, "input": {"euro": 7}, "results": {"a": ["ü"]}, "workflow_input": {}}

    listed = terminal.run("approval", "list").out
    got = terminal.run("approval", "get", f"{started}:gate").out

    about = 'labels {"team": "blue"}, input {"euro": 7}, results {"a": ["ü"]}'
    assert re.search(rf"{started}:gate +good +Ship it\? +{re.escape(about)}  ", listed)
    compact = "".join(got.split())
    assert "questionShipit?" in compact
    assert 'labels{"team":"blue"}input{"euro":7}results{"a":["ü"]}' in compact
    assert "workflow input" not in listed + got


def test_a_signal_is_kept_or_taken(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    kept = terminal.run("workflow", "signal", started, "paid", '{"euro": 7}', "--id", "one")
    plane.only.nodes["gate"]["state"] = "waiting"
    taken = terminal.run("workflow", "signal", started, "paid")

    assert "paid is kept until a node awaits it." in kept.err
    assert "paid was taken by gate." in taken.err
    assert (Verb.SIGNAL, {"workflow": started, "signal": "paid", "value": {"euro": 7}, "id": "one"}) in plane.asked


def test_history_is_told_with_restores_as_a_table_and_as_json(terminal: Terminal, started: str) -> None:
    table = terminal.run("workflow", "get", started, "--history")
    events = terminal.run("workflow", "get", started, "--history", "--output", "json").json

    assert table.out.splitlines()[0].split() == ["AT", "EVENT", "NODE", "ATTEMPT", "AGENT", "WHY"]
    assert events[0]["event"] == "workflow.accepted"
    restores = [event for event in events if event["event"] == "workflow.restored"]
    assert [(restore["agent"], restore["reason"]) for restore in restores] == [("ada", "gate")]


def test_denied_says_so(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    plane.only.nodes["gate"]["state"] = "awaiting_approval"

    ran = terminal.run("approval", "deny", f"{started}:gate", "--by", "bob")

    assert "was denied by bob" in ran.err
    assert plane.only.nodes["gate"]["state"] == "rejected"


@pytest.mark.parametrize("dry_run", [True, False])
def test_redrive_of_a_node_asks_the_ledger(
    terminal: Terminal, started: str, plane: ScriptedPlane, tmp_path: Path, dry_run: bool
) -> None:
    body = tmp_path / "input.json"
    body.write_text('{"path": "lib"}')
    more = ("--dry-run",) if dry_run else ("--yes",)

    ran = terminal.run("dead", "redrive", "--node", f"{started}:a", "--input", f"@{body}", *more)

    verb, asked = plane.asked[-1]
    assert ran.code == 0
    assert (verb, asked["input"], asked["dry_run"]) == (Verb.REDRIVE, {"path": "lib"}, dry_run)
    assert ran.out == f"1 {'would begin' if dry_run else 'begin'} again: a\n"


def test_redrive_of_a_node_asks_first(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    ran = terminal.run("dead", "redrive", "--node", f"{started}:a", stdin="n\n")

    assert ran.code == 1
    assert Verb.REDRIVE not in plane.verbs()


def row(state: str, **counts: int) -> WorkflowRow:
    return workflow_row(state, counts=counts, total=3)


def test_lines_tell_news_once_a_second_and_always_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = Lines(clock=lambda: now[-1])

    for instant, seen in [
        (0.0, row("running", ready=3)),
        (0.5, row("running", completed=1, ready=2)),
        (1.0, row("running", completed=1, ready=2)),
        (1.5, row("running", completed=2, ready=1)),
        (2.5, None),
        (2.6, row("completed", completed=3)),
    ]:
        now.append(instant)
        lines.show(seen)

    news = [line.split(" s  ")[1] for line in capsys.readouterr().err.splitlines()]
    assert news == [
        "running: 0 of 3 ended (3 ready)",
        "running: 1 of 3 ended (2 ready, 1 completed)",
        "The control plane does not answer; the workflow is waited for",
        "completed: 3 of 3 ended (3 completed)",
    ]


def test_a_terminal_gets_a_picture_of_the_states() -> None:
    console = Console(width=80, record=True, file=StringIO())

    console.print(_picture(row("running", completed=1, working=1, failed=1), 12.3, silent=True))

    text = console.export_text()
    assert "running  12 s  2 of 3" in text
    assert "1 working  1 completed  1 failed" in text
    assert "does not answer" in text


def test_counts_without_nodes_are_told_without_brackets() -> None:
    assert counted(row("accepted")) == "accepted: 0 of 3 ended"


def test_labels_are_given_at_the_start_and_select_what_is_listed(
    terminal: Terminal, file: Path, plane: ScriptedPlane
) -> None:
    ran = terminal.run("workflow", "start", str(file), "--detach", "--label", "team=x", "-l", "stage=live")
    listed = terminal.run("workflow", "list", "--label", "team=x", "--output", "json")

    assert (ran.code, listed.code) == (0, 0)
    assert plane.only.head["labels"] == {"team": "x", "stage": "live"}
    assert plane.asked[-1] == (Verb.LIST, {"labels": {"team": "x"}, "limit": 50, "after": None})


@pytest.mark.parametrize(
    ("option", "wrong"),
    [("--label", "team"), ("--label", "=x"), ("--label", "te am=x"), ("--label", "team="), ("--wait", "5")],
)
def test_a_wrong_label_or_wait_is_refused_before_anything_is_sent(
    terminal: Terminal, file: Path, plane: ScriptedPlane, option: str, wrong: str
) -> None:
    ran = terminal.run("workflow", "start", str(file), option, wrong)

    assert (ran.code, plane.asked) == (2, [])


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
