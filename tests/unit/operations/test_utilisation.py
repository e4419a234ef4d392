"""The utilisation of a fleet under load: what counts, and that queued work keeps the slots full."""

from __future__ import annotations

import asyncio

import pytest

from coditect import Agent
from coditect.model.capability import CapabilitySpec, Priority
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration
from coditect.operations.load import LoadCounts, LoadPlan, Utilisation, drive
from coditect.testing import TestFleet

CAPABILITY = "load.work"


def loading() -> Agent:
    agent = Agent("load", slots=20)

    @agent.capability(CAPABILITY)
    async def work(task: dict[str, int]) -> None:
        await asyncio.sleep(task["milliseconds"] / 1000)

    return agent


async def measured(tasks: int, concurrency: int) -> Utilisation:
    load = LoadPlan(tasks, concurrency, None, 50, 200, CAPABILITY, Priority.P1, 60.0)
    async with TestFleet(agents=[loading()], replicas=2) as fleet:
        counts, found = LoadCounts(), Utilisation()
        watching = asyncio.create_task(found.watch(fleet.registry, CAPABILITY, lambda: counts.in_flight))
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


async def test_a_fleet_in_which_nothing_queues_has_no_utilisation() -> None:
    found = await measured(300, 20)

    assert (found.share, found.looks) == (None, 0)


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
    load = LoadPlan(1_000, 40, None, 50, 200, CAPABILITY, Priority.P1, 60.0)
    async with TestFleet(agents=[loading()]) as fleet:
        counts, found = LoadCounts(), Utilisation()
        fleet.registry.failing = True
        watching = asyncio.create_task(found.watch(fleet.registry, CAPABILITY, lambda: counts.in_flight))
        await fleet.advance("2500ms")
        fleet.registry.failing = False
        await drive(fleet.client, load, counts)
        watching.cancel()

    assert counts.failed == 0
    assert found.looks >= 1
