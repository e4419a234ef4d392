"""A load test: the lengths of its tasks, its report, and the utilization of the agents."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect import Agent
from coditect.model.capability import CapabilitySpec, Priority
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration
from coditect.operations.load import (
    Effect,
    LoadAnswer,
    LoadCounts,
    LoadEnding,
    LoadPlan,
    Utilisation,
    drive,
    parse_effects,
    percentiles,
    summarize,
)
from coditect.testing import TestFleet

CAPABILITY = "load.work"


def answer(task_id: str | None, ending: LoadEnding = LoadEnding.COMPLETED, latency: float = 0.1) -> LoadAnswer:
    return LoadAnswer(task_id, ending, 1.0, latency, agent_id="a" if ending is LoadEnding.COMPLETED else None)


def test_repeated_execution_is_listed_and_no_failure() -> None:
    effects = parse_effects(["x a 1 1", "x b 2 1", "y a 1 1"], frozenset({"x", "y"}))

    report = summarize([answer("x"), answer("y")], effects)

    assert report.ok
    assert report.repeated == {"x": (Effect("a", 1, 1), Effect("b", 2, 1))}
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
    assert (report.effects_compared, report.lost, report.utilisation) == (False, (), None)


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
    load = LoadPlan(1, 1, None, low, low + more, CAPABILITY, Priority.P1, 1.0)

    assert low <= load.milliseconds(number) <= low + more


def loading() -> Agent:
    agent = Agent("load", slots=20)

    @agent.capability(CAPABILITY)
    async def work(task: dict[str, int]) -> None:
        await asyncio.sleep(task["milliseconds"] / 1000)

    return agent


async def measured(tasks: int, concurrency: int, *, replicas: int = 2, away: bool = False) -> Utilisation:
    """The utilization during a load; `away`: the registry answers only some time after the start."""
    load = LoadPlan(tasks, concurrency, None, 50, 200, CAPABILITY, Priority.P1, 60.0)
    async with TestFleet(agents=[loading()], replicas=replicas) as fleet:
        counts, found = LoadCounts(), Utilisation()
        watching = asyncio.create_task(found.watch(fleet.registry, CAPABILITY, lambda: counts.in_flight))
        if away:
            fleet.registry.failing = True
            await fleet.advance("2500ms")
            fleet.registry.failing = False
        await drive(fleet.client, load, counts)
        watching.cancel()
    assert counts.failed == 0
    return found


@pytest.mark.proof
async def test_nine_tenths_of_the_slots_are_in_use_while_work_is_queued() -> None:
    found = await measured(1_200, 80)

    assert found.share is not None
    assert found.share >= 0.9
    assert found.looks >= 2


def agents(**running: int) -> list[AgentRecord]:
    """One agent of ten slots for each status, with so many tasks."""
    told = Registration(AgentId("load-1"), "load", "1.0.0", 10, (CapabilitySpec(CAPABILITY),))
    return [AgentRecord(told, Load(AgentStatus(status), busy), 1_000) for status, busy in running.items()]


def looked(found: list[AgentRecord], *in_flight: int) -> Utilisation:
    utilisation = Utilisation()
    for tasks in in_flight:
        utilisation.look(found, tasks)
    return utilisation


def test_a_look_counts_slots_of_agents_that_do_not_drain_from_the_second_one_at_queued_work_on() -> None:
    queued, full = looked(agents(busy=9), 11, 11, 11, 10, 11), looked(agents(busy=10), 10, 10, 10)

    assert (queued.looks, queued.share) == (2, 0.9)
    assert (full.looks, full.share) == (0, None)

    assert looked(agents(busy=10, draining=1), 11, 11).share == 1.0

    assert looked([], 5, 5, 5).share is None


async def test_a_registry_that_is_away_costs_its_looks_only() -> None:
    assert (await measured(1_000, 40, replicas=1, away=True)).looks >= 1
