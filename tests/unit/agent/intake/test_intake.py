"""What an agent takes in hand: nothing that it cannot start, and everything in the end."""

from __future__ import annotations

import asyncio

from coditect import Agent, Priority
from coditect.client.client import Client
from coditect.client.handle import Handle
from tests.support import eventually
from tests.unit.agent.scene import Scene


class Sleeper:
    """Tasks that take as long as their input says, counted."""

    def __init__(self, *, slots: int) -> None:
        self.running = 0
        self.agent = Agent("sleeper", slots=slots)

        @self.agent.capability("sleep.c0")
        async def sleep(seconds: float) -> float:
            self.running += 1
            await asyncio.sleep(seconds)
            self.running -= 1
            return seconds


async def submit(client: Client, many: int, seconds: float, priority: Priority = Priority.P1) -> list[Handle]:
    return [one async for one in client.submit_many("sleep.c0", [seconds] * many, priority=priority)]


async def done(handles: list[Handle], *, seconds: float = 100.0) -> None:
    async with asyncio.timeout(seconds):
        await asyncio.gather(*(one.result() for one in handles))


async def test_nothing_is_held_that_cannot_start(scene: Scene) -> None:
    sleeper = Sleeper(slots=2)
    client = await scene.serve(sleeper.agent)

    await submit(client, 20, 30)

    await eventually(lambda: scene.ready_tasks("sleep.c0") == 19)
    assert sleeper.running == 1, "the other slot is kept for P0"


async def test_p0_starts_at_once_beside_long_p2_work(scene: Scene) -> None:
    sleeper = Sleeper(slots=4)
    client = await scene.serve(sleeper.agent)
    await submit(client, 20, 30, Priority.P2)
    await eventually(lambda: sleeper.running == 3)

    await done(await submit(client, 10, 0.001, Priority.P0), seconds=2)
