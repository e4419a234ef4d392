from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coditect.cli import load
from coditect.cli.terminal import options
from coditect.errors import Overloaded
from coditect.model.result import Failure, Outcome, Status
from tests.unit.cli.scene import Terminal, completed


def logged(terminal: Terminal, path: Path, lines: int) -> None:
    """Every task leaves its effect."""
    path.write_text("".join(f"task-{number} a 1 1\n" for number in range(1, lines + 1)))
    terminal.connections.environ["CODITECT_LOAD_LOG"] = str(path)


def test_closed_loop_submits_everything_and_reports(terminal: Terminal, tmp_path: Path) -> None:
    logged(terminal, tmp_path / "effects.log", 20)

    ran = terminal.run("load", "--tasks", "20", "--concurrency", "5", "--output", "json")

    orders = terminal.connections.scripted.orders
    assert ran.code == 0
    assert (ran.json["endings"]["completed"], ran.json["lost"], ran.json["executions"]) == (20, [], 20)
    assert all(50 <= order.value["milliseconds"] <= 200 for order in orders)
    assert {order.capability for order in orders} == {"load.work"}


def test_open_loop_keeps_its_rate(terminal: Terminal, tmp_path: Path) -> None:
    logged(terminal, tmp_path / "effects.log", 20)

    ran = terminal.run("load", "--tasks", "20", "--rate", "200", "--output", "json")

    assert ran.code == 0
    assert 0.09 <= ran.json["elapsed_seconds"] < 5


def test_hung_failed_and_lost_tasks_exit_1_and_are_named(terminal: Terminal, tmp_path: Path) -> None:
    def end(task_id: str) -> Outcome | None:
        if task_id == "task-1":
            return None
        if task_id == "task-2":
            failure = Failure("handler_error", "ValueError", "no")
            return Outcome(Status.FAILED, b"{}", task_id, task_id, failure=failure)
        return completed(task_id)

    logged(terminal, tmp_path / "effects.log", 2)
    terminal.connections.scripted.end = end

    ran = terminal.run("load", "--tasks", "4")

    assert ran.code == 1
    assert "task-1" in ran.out
    assert "handler_error" in ran.out
    assert "task-4" in ran.out


def test_refused_submissions_are_counted_with_their_reason(terminal: Terminal) -> None:
    terminal.connections.scripted.refusal = Overloaded("The broker refuses more")

    ran = terminal.run("load", "--tasks", "3", "--output", "json")

    assert ran.code == 1
    assert ran.json["endings"]["refused"] == 3
    assert ran.json["problems"] == {"Overloaded: The broker refuses more": 3}


def test_ctrl_c_says_what_goes_on_and_how_to_see_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> None:
        raise asyncio.CancelledError

    said: list[str] = []
    monkeypatch.setattr(load, "drive", interrupted)
    monkeypatch.setattr(options, "say", said.append)

    with pytest.raises(asyncio.CancelledError):
        terminal.run("load", "--tasks", "1")

    assert "What was submitted goes on" in said[0]
    assert "coditect capability get load.work --why-not; coditect agent list" in said[0]


def test_effect_log_that_was_named_must_exist_before_anything_is_submitted(terminal: Terminal, tmp_path: Path) -> None:
    ran = terminal.run("load", "--tasks", "1", "--effect-log", str(tmp_path / "nowhere.log"))

    assert ran.code == 2
    assert "There is no such effect log" in ran.err
    assert terminal.connections.scripted.orders == []
