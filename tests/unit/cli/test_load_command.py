from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.cli.load import commands as load
from coditect.cli.load.drive import LoadPlan
from coditect.cli.load.report import (
    Effect,
    LoadAnswer,
    LoadEnding,
    parse_effects,
    percentiles,
    report_json,
    summarize,
)
from coditect.cli.terminal import waiting
from coditect.errors import Overloaded
from coditect.model.capability import Priority
from coditect.model.result import Failure, Outcome, Status
from tests.unit.cli.scene import Terminal, completed


def answer(task_id: str | None, ending: LoadEnding = LoadEnding.COMPLETED, latency: float = 0.1) -> LoadAnswer:
    return LoadAnswer(task_id, ending, 1.0, latency, agent_id="a" if ending is LoadEnding.COMPLETED else None)


def test_repeated_execution_is_listed_and_no_failure() -> None:
    effects = parse_effects(["x a 1 1", "x b 2 1", "y a 1 1"], frozenset({"x", "y"}))

    report = summarize([answer("x"), answer("y")], effects)

    assert report.ok
    assert report.repeated == {"x": (Effect("a", 1, 1), Effect("b", 2, 1))}
    assert report_json(report)["duplicates"] == 1
    assert report.executions == 3


@pytest.mark.parametrize(
    "answers",
    [
        [answer("x"), answer("y", LoadEnding.FAILED)],
        [answer("x"), answer("y", LoadEnding.HUNG)],
        [answer("x"), answer(None, LoadEnding.REFUSED)],
        [answer("x"), answer("x")],
        [answer("x"), answer("without-effect")],
    ],
)
def test_anything_not_done_and_answered_once_is_not_ok(answers: list[LoadAnswer]) -> None:
    effects = {"x": [Effect("a", 1, 1)], "y": [Effect("a", 1, 1)]}

    assert not summarize(answers, effects).ok


def test_taken_task_without_an_effect_is_lost_whether_answered_or_not() -> None:
    report = summarize([answer("x"), answer("y", LoadEnding.HUNG), answer("z", LoadEnding.FAILED)], {})

    assert report.lost == ("x", "y")


def test_without_an_effect_log_nothing_is_said_about_losses() -> None:
    report = summarize([answer("x")], None)

    assert report.ok
    assert report_json(report)["lost"] is None


def test_lines_of_other_runs_and_torn_lines_do_not_count() -> None:
    effects = parse_effects(["other a 1 1", "x a one 1", "x a", "", "x a 1 1 1"], frozenset({"x"}))

    assert effects == {}


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_are_ordered_values_of_the_run(values: list[float]) -> None:
    found = percentiles(values)

    assert found.p50 <= found.p95 <= found.p99 <= found.highest == max(values)
    assert {found.p50, found.p95, found.p99} <= set(values)


def test_no_values_have_zero_percentiles() -> None:
    assert percentiles([]).p99 == 0.0


@given(st.integers(0, 1_000_000), st.integers(0, 500), st.integers(0, 500))
def test_lengths_of_tasks_stay_in_their_range(number: int, low: int, more: int) -> None:
    load = LoadPlan(1, 1, None, low, low + more, "load.work", Priority.P1, 1.0)

    assert low <= load.milliseconds(number) <= low + more


def logged(terminal: Terminal, path: Path, lines: int) -> None:
    """Every task leaves its effect."""
    path.write_text("".join(f"task-{number} a 1 1\n" for number in range(1, lines + 1)))
    terminal.connections.environ["CODITECT_LOAD_LOG"] = str(path)


def test_closed_loop_submits_everything_and_reports(terminal: Terminal, tmp_path: Path) -> None:
    logged(terminal, tmp_path / "effects.log", 20)

    ran = terminal.run("load", "--tasks", "20", "--concurrency", "5", "--output", "json")

    orders = terminal.connections.scripted.orders
    assert ran.code == 0
    assert (ran.json["completed"], ran.json["lost"], ran.json["executions"]) == (20, 0, 20)
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
    assert ran.json["refused"] == 3
    assert ran.json["problems"] == {"Overloaded: The broker refuses more": 3}


def test_effect_log_that_was_named_must_exist(terminal: Terminal, tmp_path: Path) -> None:
    ran = terminal.run("load", "--tasks", "1", "--effect-log", str(tmp_path / "nowhere.log"))

    assert ran.code == 2


def test_ctrl_c_says_what_goes_on_and_how_to_see_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> None:
        raise asyncio.CancelledError

    said: list[str] = []
    monkeypatch.setattr(load, "drive", interrupted)
    monkeypatch.setattr(waiting, "say", said.append)

    with pytest.raises(asyncio.CancelledError):
        terminal.run("load", "--tasks", "1")

    assert "What was submitted goes on" in said[0]
    assert "coditect task why-not load.work; coditect agent list" in said[0]


def test_range_upside_down_is_a_usage_error(terminal: Terminal) -> None:
    assert terminal.run("load", "--min-ms", "9", "--max-ms", "1").code == 2
