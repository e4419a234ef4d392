"""What a task sets in a context variable ends with it, wherever its handler runs."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from coditect import Agent
from coditect.testing import TestFleet
from tests.unit.agent.process_agent import worker
from tests.unit.agent.scene import Scene

left_behind: ContextVar[str] = ContextVar("left_behind", default="nothing")


def swapped(mine: str) -> str:
    """What another task left behind, and something for the next one to find."""
    found = left_behind.get()
    left_behind.set(mine)
    return found


def setting() -> Agent:
    agent = Agent("setting", slots=1)
    agent.capability("set.thread")(swapped)

    @agent.capability("set.quick")
    async def waiting_for_nothing(mine: str) -> str:
        return swapped(mine)

    @agent.capability("set.loop")
    async def waiting(mine: str) -> str:
        found = swapped(mine)
        await asyncio.sleep(0.01)
        return found

    return agent


async def test_tasks_find_nothing_of_each_other() -> None:
    async with TestFleet(agents=[setting()]) as fleet:
        kinds = ["set.thread", "set.quick", "set.loop"] * 10
        handles = [await fleet.submit(kind, f"{kind} {number}") for number, kind in enumerate(kinds)]

        assert {await handle.result(str, timeout="1m") for handle in handles} == {"nothing"}


async def test_tasks_of_a_worker_process_find_nothing_of_each_other(scene: Scene) -> None:
    client = await scene.client()
    await scene.start(worker)

    assert [await client.request("proc.context", f"task {n}", str, timeout="30s") for n in range(4)] == ["nothing"] * 4
