"""What an agent takes in hand: nothing that it cannot start, and everything in the end; each level keeps its share."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect import Agent, Priority
from coditect.agent.intake import WEIGHTS, Slots
from coditect.testing import TestFleet
from coditect.wire import routing
from tests.support import eventually
from tests.unit.agent.scene import Scene

P0, P1, P2 = Priority
LEVELS = st.sets(st.sampled_from(list(Priority)), min_size=1)


async def test_p0_starts_at_once_beside_long_p2_work(scene: Scene) -> None:
    agent, running = Agent("sleeper", slots=4), list[float]()

    @agent.capability("sleep.long")
    async def sleep(seconds: float) -> None:
        running.append(seconds)
        await asyncio.sleep(seconds)

    client = await scene.serve(agent)
    _ = [handle async for handle in client.submit_many("sleep.long", [30] * 20, priority=P2)]
    await eventually(lambda: len(running) == 3)

    async with asyncio.timeout(2):
        urgent = [handle async for handle in client.submit_many("sleep.long", [0.001] * 10, priority=P0)]
        await asyncio.gather(*(handle.result() for handle in urgent))


def heartbeats(slots: Slots, waiting: set[Priority], rounds: int) -> Counter[Priority]:
    """Fills the slots, then frees them one after the other, the oldest first; every level always waits."""
    running: list[Priority] = []
    counted: Counter[Priority] = Counter()
    for _ in range(rounds):
        while (level := slots.choose(waiting)) is not None:
            slots.take(level)
            running.append(level)
            counted[level] += 1
        slots.give_back(running.pop(0))
    return counted


@pytest.mark.parametrize("total", [1, 2, 5, 32])
def test_each_level_keeps_its_share_under_a_flood(total: int) -> None:
    counted = heartbeats(Slots(total), {P0, P1, P2}, 2_600)

    assert counted[P2] >= counted.total() / 13 - 2
    assert counted[P0] >= counted[P1] >= counted[P2]
    assert total > 1 or all(abs(counted[level] - 200 * WEIGHTS[level]) <= 2 for level in Priority)


@given(total=st.integers(1, 32), reserve=st.none() | st.integers(0, 31))
def test_as_many_are_kept_for_p0_as_the_agent_says_or_one(total: int, reserve: int | None) -> None:
    slots = Slots(total) if reserve is None else Slots(total, reserve=reserve)
    while (level := slots.choose({P1, P2})) is not None:
        slots.take(level)

    assert slots.in_use == max(1, total - (1 if reserve is None else reserve))
    assert (slots.startable(P1), slots.startable(P0)) == (0, total - slots.in_use)
    assert slots.choose({P0, P1, P2}) is (P0 if slots.startable(P0) else None)


@pytest.mark.parametrize(("reserve", "at_once"), [(0, 2), (1, 1)])
async def test_agent_keeps_slots_for_p0_and_holds_no_task_that_cannot_start(reserve: int, at_once: int) -> None:
    agent = Agent("worker", slots=2, reserve=reserve)

    @agent.capability("work.do")
    async def work(_: None) -> None:
        await asyncio.sleep(60)

    async with TestFleet(agents=[agent]) as fleet:
        for _ in range(20):
            await fleet.submit("work.do", priority=P1)
        await fleet.advance("1s")

        assert fleet.agents[0].load.running == at_once
        assert fleet.server.queue(routing.task_queue("work.do", P1)).stats.messages == 20 - at_once


def test_running_p0_task_is_what_was_kept_for() -> None:
    slots = Slots(2)
    slots.take(P0)

    assert slots.startable(P2) == 1


@given(
    total=st.integers(1, 8),
    steps=st.lists(st.tuples(LEVELS, st.booleans()), max_size=200),
)
def test_never_more_than_all_slots_and_nobody_starves(total: int, steps: list[tuple[set[Priority], bool]]) -> None:
    slots, running = Slots(total), list[Priority]()
    passed_over: Counter[Priority] = Counter()
    for waiting, ends in steps:
        level = slots.choose(waiting)
        if level is not None:
            assert level in waiting
            slots.take(level)
            running.append(level)
            for other in waiting - {level}:
                passed_over[other] += slots.startable(other) > 0
            passed_over[level] = 0
        elif running and ends:
            slots.give_back(running.pop(0))
        for idle in set(Priority) - waiting:
            passed_over[idle] = 0
        assert slots.in_use == len(running) <= total
        assert max(passed_over.values(), default=0) <= 2 * sum(WEIGHTS.values())
