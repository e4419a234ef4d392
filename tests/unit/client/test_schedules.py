"""Schedules of a whole fleet, by its client: ticks of virtual time start workflows."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from coditect import Agent, From, Workflow
from coditect.errors import InputError, InvalidTask, NotFound
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState


def clerk(seen: list[str]) -> Agent:
    agent = Agent("clerk")

    @agent.capability("note.down")
    async def note(tick: str) -> None:
        seen.append(tick)

    return agent


def noting() -> Workflow:
    flow = Workflow("noting")
    flow.task("note.down", From("input"))
    return flow


async def test_every_tick_starts_the_workflow_with_the_tick_as_its_input() -> None:
    seen: list[str] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        schedules = fleet.client.schedules
        await schedules.create("noting", noting(), From("tick"), every=timedelta(seconds=10))
        await asyncio.sleep(35)
        paused = await schedules.pause("noting")
        await asyncio.sleep(30)
        extra = await schedules.run("noting")
        resumed = await schedules.resume("noting")
        await asyncio.sleep(10)
        states = [row.state async for row in fleet.client.workflows.list()]

    assert seen[:3] == [f"2026-01-01T00:00:{second}+00:00" for second in (10, 20, 30)]
    assert len(seen) == len(states) == 5
    assert set(states) == {WorkflowState.COMPLETED}
    assert (paused.state, paused.runs, resumed.state) == ("paused", 3, "active")
    assert extra is not None


async def test_schedules_are_listed_shown_replaced_and_deleted() -> None:
    async with TestFleet(agents=[clerk([])]) as fleet:
        schedules = fleet.client.schedules
        for name in ("b", "a"):
            await schedules.create(name, noting(), "x", cron="0 8 * * 1-5", zone="Europe/Paris", overlap="skip")
        with pytest.raises(InputError, match="There is a schedule of this name"):
            await schedules.create("a", noting(), every="1h")
        replaced = await schedules.create("a", noting(), every="1h", jitter="1m", replace=True, paused=True)
        names = [row.schedule async for row in schedules.list()]
        shown = await schedules.get("b")
        await schedules.delete("a")
        with pytest.raises(NotFound, match="no such schedule"):
            await schedules.get("a")
        with pytest.raises(InvalidTask, match="no cron expression"):
            await schedules.create("c", noting(), cron="every day")

    assert (replaced.every_ms, replaced.jitter_ms, replaced.state, replaced.next) == (3_600_000, 60_000, "paused", None)
    assert names == ["a", "b"]
    assert (shown["input"], shown["upcoming"][0]) == ("x", "2026-01-01T08:00:00+01:00")
