"""The report of a load test, and the lengths of its tasks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.model.capability import Priority
from coditect.operations.load import (
    Effect,
    LoadAnswer,
    LoadEnding,
    LoadPlan,
    parse_effects,
    percentiles,
    report_json,
    summarize,
)


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


def test_losses_and_utilisation_are_told_where_they_are_known() -> None:
    lossy = summarize([answer("x"), answer("y", LoadEnding.HUNG), answer("z", LoadEnding.FAILED)], {})

    assert lossy.lost == ("x", "y")

    report = summarize([answer("x")], None)

    assert report.ok
    assert report_json(report)["lost"] is None

    assert report_json(summarize([answer("x")], None, utilisation=0.98765))["utilisation"] == 0.988
    assert report_json(summarize([answer("x")], None))["utilisation"] is None


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
