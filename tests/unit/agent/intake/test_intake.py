"""What an agent takes in hand: nothing that it cannot start, and everything in the end."""

from __future__ import annotations

import asyncio
import random

import pytest

from coditect import Agent, Context, Priority
from coditect.client.client import Client
from coditect.client.handle import Handle
from tests.support import eventually
from tests.unit.agent.scene import Scene


class Sleeper:
    """Tasks that take as long as their input says, counted."""

    def __init__(self, *, slots: int, capabilities: int = 1) -> None:
        self.running = 0
        self.highest = 0
        self.started: list[str] = []
        self.agent = Agent("sleeper", slots=slots)
        for number in range(capabilities):
            self.agent.capability(f"sleep.c{number}")(self._sleep)

    async def _sleep(self, seconds: float, ctx: Context) -> float:
        self.running += 1
        self.highest = max(self.highest, self.running)
        self.started.append(ctx.priority)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1
        return seconds


async def submit(client: Client, many: int, seconds: float, priority: Priority = Priority.P1) -> list[Handle]:
    return [one async for one in client.submit_many("sleep.c0", [seconds] * many, priority=priority)]


async def done(handles: list[Handle], *, seconds: float = 100.0) -> None:
    async with asyncio.timeout(seconds):
        await asyncio.gather(*(one.result() for one in handles))


async def test_nothing_is_held_that_cannot_start(scene: Scene) -> None:
    sleeper = Sleeper(slots=2)
    await scene.start(sleeper.agent)
    client = await scene.client()

    await submit(client, 20, 30)

    await eventually(lambda: scene.ready_tasks("sleep.c0") == 19)
    assert sleeper.running == 1, "the other slot is kept for P0"


async def test_idle_peer_gets_what_a_busy_agent_handed_back(scene: Scene) -> None:
    busy, idle = Sleeper(slots=2), Sleeper(slots=8)
    await scene.start(busy.agent)
    client = await scene.client()
    await submit(client, 5, 30)
    await eventually(lambda: scene.ready_tasks("sleep.c0") == 4)

    await scene.start(idle.agent)

    await eventually(lambda: idle.running == 4)


async def test_p0_starts_at_once_beside_long_p2_work(scene: Scene) -> None:
    sleeper = Sleeper(slots=4)
    await scene.start(sleeper.agent)
    client = await scene.client()
    await submit(client, 20, 30, Priority.P2)
    await eventually(lambda: sleeper.running == 3)

    await done(await submit(client, 10, 0.001, Priority.P0), seconds=2)


async def test_consumption_resumes_when_slots_free(scene: Scene) -> None:
    sleeper = Sleeper(slots=2)
    await scene.start(sleeper.agent)
    client = await scene.client()

    handles = await submit(client, 8, 0.2)

    await done(handles)
    assert sleeper.highest == 1


async def test_all_slots_fill_up_after_a_pause(scene: Scene) -> None:
    """Long tasks leave together; whoever waits must fill every slot, not only as many as one consumer fetches."""
    sleeper = Sleeper(slots=9, capabilities=3)
    await scene.start(sleeper.agent)
    client = await scene.client()
    first = await submit(client, 8, 0.3)
    others = [one async for one in client.submit_many("sleep.c1", [0.3] * 8)]
    await done(first + others)

    await submit(client, 40, 30)

    await eventually(lambda: sleeper.running == 8)


async def test_p2_gets_its_share_under_a_flood_of_p0(scene: Scene) -> None:
    sleeper = Sleeper(slots=4)
    await scene.start(sleeper.agent)
    client = await scene.client()

    low = await submit(client, 40, 0.005, Priority.P2)
    high = await submit(client, 520, 0.005, Priority.P0)
    await done(high + low, seconds=30)

    flood = sleeper.started[: 520 + 40]
    last_high = len(flood) - 1 - flood[::-1].index(Priority.P0)
    assert flood[: last_high + 1].count(Priority.P2) >= min(40, last_high // 13 - 3)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
async def test_everything_finishes_whatever_arrives(scene: Scene, seed: int) -> None:
    seeded = random.Random(seed)
    slots = seeded.choice([1, 2, 3, 8])
    fleet = [Sleeper(slots=slots, capabilities=3) for _ in range(seeded.choice([1, 2]))]
    for one in fleet:
        await scene.start(one.agent)
    client = await scene.client()
    handles = []
    for _ in range(250):
        seconds = seeded.choice([0.0, 0.001, 0.01, 0.07])
        name = f"sleep.c{seeded.randrange(3)}"
        handles.append(await client.submit(name, seconds, priority=seeded.choice(list(Priority))))
        if seeded.random() < 0.1:
            await asyncio.sleep(seeded.choice([0.0, 0.02, 0.06]))

    await done(handles, seconds=30)

    assert all(one.highest <= slots for one in fleet)
