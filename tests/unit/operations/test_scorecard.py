"""The scorecard of fleets that idle, work, lose an agent, and do too little; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from coditect import Agent, Context, Workflow
from coditect.broker.memory import MemoryServer
from coditect.client.approvals import Approvals
from coditect.collaboration.state import SharedState
from coditect.model.registration import AgentRecord
from coditect.operations import scorecard
from coditect.operations.connections import Connections
from coditect.operations.scorecard import Bound, Measure, ScorecardRow, Verdict, measure_fleet, score, take_scorecard
from coditect.registry.memory import MemoryRegistry
from coditect.telemetry.metrics import LOCK_TIMEOUTS, LOCK_WAIT, QUEUE_WAIT
from coditect.testing import TestFleet
from tests.api import services_of


def worker(*, slots: int) -> Agent:
    agent = Agent("worker", slots=slots)

    @agent.capability("work.wait", timeout="10m")
    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @agent.capability("work.lock", timeout="10m")
    async def lock(seconds: float, ctx: Context) -> None:
        async with ctx.lock("shared"):
            await asyncio.sleep(seconds)

    return agent


@asynccontextmanager
async def opened_to(fleet: TestFleet) -> AsyncIterator[Connections]:
    async with services_of(fleet.server, fleet.registry, fleet.client) as services:
        yield services.opened


def verdicts(rows: tuple[ScorecardRow, ...]) -> dict[str, Verdict]:
    return {row.name: row.verdict for row in rows}


async def test_an_idle_fleet_is_judged_only_by_what_needs_no_work() -> None:
    async with TestFleet(agents=[worker(slots=2)]) as fleet, opened_to(fleet) as opened:
        rows = (await take_scorecard(opened)).rows

    assert {name for name, verdict in verdicts(rows).items() if verdict is not Verdict.UNKNOWN} == {
        "agent to agent", "state query", "capability matching",
    }  # fmt: skip
    assert Verdict.FAIL not in verdicts(rows).values()
    assert all(row.how and (row.value is None) is (row.verdict is Verdict.UNKNOWN) for row in rows)


async def test_a_busy_fleet_that_lost_an_agent_passes_every_target() -> None:
    flow, lasting = Workflow("steps"), Workflow("lasting")
    flow.task("work.wait", 0.1, after=[flow.task("work.wait", 0.1)])
    for _ in range(4):
        lasting.task("work.wait", 8)
    async with (
        TestFleet(agents=[worker(slots=6)], replicas=2, start=datetime.now(UTC)) as fleet,
        opened_to(fleet) as opened,
    ):
        for _ in range(3):
            run = await fleet.start(flow)
            await run.result()
        run = await fleet.start(lasting)
        held = [await fleet.submit("work.lock", 3) for _ in range(2)]
        await fleet.advance("1s")
        (row, *_) = [row async for row in fleet.client.locks.list("shared")]
        fleet.kill(row.agent)
        for task in held:
            await task.result()
        await run.result()
        await fleet.restart(row.agent)
        tasks = [await fleet.submit("work.wait", 0.4) for _ in range(100)]
        await fleet.advance("1s")
        measures = await measure_fleet(opened)
        for task in tasks:
            await task.result()

    rows = score(measures).rows
    assert {name: verdict for name, verdict in verdicts(rows).items() if verdict is not Verdict.PASS} == {}, rows
    assert 2 < (measures["recovery"].value or 0) <= 5
    assert 2 < (measures["locks freed"].value or 0) <= 5


async def test_a_lost_agent_without_a_lock_and_without_work_is_no_recovery() -> None:
    async with TestFleet(agents=[worker(slots=1)], replicas=2) as fleet, opened_to(fleet) as opened:
        fleet.kill("worker-1")
        await fleet.advance("10s")
        rows = verdicts((await take_scorecard(opened)).rows)

    assert (rows["recovery"], rows["locks freed"]) == (Verdict.UNKNOWN, Verdict.UNKNOWN)


async def test_agents_that_do_not_answer_miss_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorecard, "WATCHES", 2)
    async with TestFleet(agents=[worker(slots=1)], replicas=3) as fleet, opened_to(fleet) as opened:
        fleet.pause("worker-1")
        measures = await measure_fleet(opened)
        fleet.resume("worker-1")

    (found,) = [row for row in score(measures).rows if row.name == "agent to agent"]
    assert (found.verdict, found.value) == (Verdict.FAIL, 2.5)
    assert "1 of them did not answer" in found.how


async def test_what_the_control_plane_answers_too_late_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*_: Any, **__: Any) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(Approvals, "autonomy", hangs)
    monkeypatch.setattr(SharedState, "get", hangs)
    async with TestFleet(agents=[worker(slots=1)]) as fleet, opened_to(fleet) as opened:
        rows = {row.name: row for row in (await take_scorecard(opened)).rows}

    assert rows["autonomy"].how == "the control plane did not answer in 10 s"
    assert rows["recovery"].how.startswith("no agent")
    assert (rows["state query"].verdict, rows["state query"].value) == (Verdict.FAIL, 10_000)


@pytest.mark.parametrize(
    "malformed",
    [
        {"bounds": ["a", "b"], "counts": [1, 1, 1]},
        {"bounds": [2, 1], "counts": [1, 1, 1]},
        {"bounds": [1, float("nan")], "counts": [1, 1, 1]},
        {"bounds": [1, 10**400], "counts": [1, 1, 1]},
        {"bounds": [1, [2]], "counts": [1, 1, 1]},
        {"bounds": [1, 2], "counts": [-1, 1, 1]},
        {"bounds": [1, 2], "counts": [1, 10**400, 1]},
        {"bounds": [1, 2], "counts": [1]},
        {"bounds": None, "counts": "1"},
        -1,
    ],
)
async def test_malformed_answers_of_agents_are_left_out(monkeypatch: pytest.MonkeyPatch, malformed: object) -> None:
    async def answers(*_: Any, **__: Any) -> list[dict[str, Any]]:
        metrics = dict.fromkeys((QUEUE_WAIT.name, LOCK_WAIT.name, LOCK_TIMEOUTS.name), malformed)
        return [{"agent_id": "worker-1", "metrics": metrics}]

    monkeypatch.setattr(scorecard, "ask_agents", answers)
    async with TestFleet(agents=[worker(slots=1)]) as fleet, opened_to(fleet) as opened:
        rows = verdicts((await take_scorecard(opened)).rows)

    assert (rows["dispatch"], rows["lock collisions"]) == (Verdict.UNKNOWN, Verdict.UNKNOWN)


async def test_a_fleet_that_is_asked_for_more_than_it_does_misses_its_throughput() -> None:
    async with TestFleet(agents=[worker(slots=1)]) as fleet, opened_to(fleet) as opened:
        tasks = [await fleet.submit("work.wait", 30) for _ in range(20)]
        await fleet.advance("2s")
        found = verdicts((await take_scorecard(opened)).rows)
        for task in tasks:
            await task.cancel()

    assert found["throughput"] is Verdict.FAIL


async def test_workflows_that_need_a_person_or_fail_miss_autonomy_and_completion() -> None:
    flow = Workflow("asks")
    flow.approval("go on?", name="gate")
    async with TestFleet(start=datetime.now(UTC)) as fleet, opened_to(fleet) as opened:
        run = await fleet.start(flow)
        await run.deny("gate", by="a person")
        await run.wait()
        found = verdicts((await take_scorecard(opened)).rows)

    assert (found["autonomy"], found["completion"]) == (Verdict.FAIL, Verdict.FAIL)


async def test_a_search_that_misses_an_agent_fails_capability_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestFleet(agents=[worker(slots=2)], replicas=2) as fleet, opened_to(fleet) as opened:
        find = MemoryRegistry.find

        async def forgetful(registry: MemoryRegistry, search: Any) -> Any:
            found = await find(registry, search)
            return found[1:] if search.capability == "work.lock" else found

        monkeypatch.setattr(MemoryRegistry, "find", forgetful)
        measures = await measure_fleet(opened)

    assert measures["capability matching"].value == 50


async def test_an_agent_that_declares_less_meanwhile_is_no_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestFleet(agents=[worker(slots=2)]) as fleet, opened_to(fleet) as opened:
        find, searches = MemoryRegistry.find, list[str | None]()

        async def find_less(registry: MemoryRegistry, search: Any) -> Any:
            """Find the agent as it is, and from the first search for a capability on without `work.lock`."""
            found = await find(registry, search)
            searches.append(search.capability)
            return found if searches == [None] else tuple(map(without_lock, found)) if search.capability is None else ()

        monkeypatch.setattr(MemoryRegistry, "find", find_less)
        measures = await measure_fleet(opened)

    assert measures["capability matching"].value == 100


def without_lock(record: AgentRecord) -> AgentRecord:
    kept = tuple(offer for offer in record.registration.capabilities if offer.name != "work.lock")
    return replace(record, registration=replace(record.registration, capabilities=kept))


async def test_without_control_plane_and_registry_the_reason_stands_in_place_of_a_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorecard, "WATCH_PAUSE_SECONDS", 0.0)
    server, registry = MemoryServer(), MemoryRegistry()
    async with TestFleet() as fleet:
        registry.failing = True
        async with services_of(server, registry, fleet.client) as services:
            rows = (await take_scorecard(services.opened)).rows

    assert {row.verdict for row in rows} == {Verdict.UNKNOWN}
    assert {row.how for row in rows if "answer" in row.how}


@pytest.mark.parametrize(
    ("bound", "below", "at", "above"),
    [
        (Bound.AT_LEAST, False, True, True),
        (Bound.ABOVE, False, False, True),
        (Bound.AT_MOST, True, True, False),
        (Bound.BELOW, True, False, False),
    ],
)
def test_a_value_at_its_limit_is_judged_by_the_bound(bound: Bound, below: bool, at: bool, above: bool) -> None:
    assert [bound.holds(value, 5) for value in (4, 5, 6)] == [below, at, above]


def test_a_target_that_was_not_measured_is_unknown() -> None:
    card = score({"autonomy": Measure(95, "as counted"), "dispatch": Measure(5, "as counted")})

    assert [row.verdict for row in card.rows[:3]] == [Verdict.PASS, Verdict.FAIL, Verdict.UNKNOWN]
    assert card.counts(Verdict.UNKNOWN) == len(card.rows) - 2
