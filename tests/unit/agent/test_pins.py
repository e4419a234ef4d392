from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from coditect import Agent, Handle, Options, Priority, ResultTimeout, Strategy, Wanted
from coditect.model.ids import AgentId
from coditect.model.result import Outcome
from tests.unit.agent.scene import Running, Scene

CAPABILITY = "pinned.work"


def worker(release: asyncio.Event | None = None, *, slots: int = 2, tags: tuple[str, ...] = ()) -> Agent:
    agent = Agent("worker", slots=slots, tags=tags)

    @agent.capability(CAPABILITY, timeout="20s")
    async def work(number: int) -> int:
        if release is not None:
            await release.wait()
        return number

    return agent


async def outcomes(scene: Scene, many: int, options: Options) -> list[Outcome]:
    handles = [await scene.submit(CAPABILITY, number, options=options) for number in range(many)]
    return [await handle.outcome(timeout="100s") for handle in handles]


@pytest.fixture
async def two(scene: Scene) -> tuple[Running, Running]:
    return await scene.start(worker()), await scene.start(worker())


async def test_pinned_tasks_are_done_by_that_agent(scene: Scene, two: tuple[Running, Running]) -> None:
    done = [(await outcomes(scene, 1, Options(pin=AgentId(two[0].agent_id))))[0] for _ in range(10)]

    assert {outcome.agent_id for outcome in done} == {two[0].agent_id}


@pytest.mark.parametrize("level", list(Priority))
@pytest.mark.parametrize("leave", [Running.stop, Running.vanish])
async def test_task_pinned_to_an_agent_that_is_gone_or_dead_is_done_by_another(
    scene: Scene, two: tuple[Running, Running], leave: Callable[[Running], Awaitable[None]], level: Priority
) -> None:
    first, second = two
    await leave(first)
    done = await outcomes(scene, 3, Options(pin=AgentId(first.agent_id), priority=level))

    assert {outcome.agent_id for outcome in done} == {second.agent_id}


async def test_what_a_full_inbox_refuses_goes_to_another_at_once(scene: Scene) -> None:
    release = asyncio.Event()
    first = await scene.start(worker(release, slots=1))
    options = Options(pin=AgentId(first.agent_id))
    handles = [await scene.submit(CAPABILITY, number, options=options) for number in range(8)]
    second = await scene.start(worker(slots=8))

    elsewhere = [outcome for outcome in await asyncio.gather(*(_early(handle) for handle in handles)) if outcome]
    release.set()
    rest = [await handle.outcome(timeout="100s") for handle in handles]

    assert {outcome.agent_id for outcome in elsewhere} == {second.agent_id}
    assert len(elsewhere) == 7
    assert Counter(outcome.agent_id for outcome in rest)[AgentId(first.agent_id)] == 1


async def _early(handle: Handle) -> Outcome | None:
    try:
        return await handle.outcome(timeout="3s")
    except ResultTimeout:
        return None


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_strategy_spreads_tasks_over_the_fleet(scene: Scene, strategy: Strategy) -> None:
    fleet = [await scene.start(worker(), beat_seconds=0.05) for _ in range(3)]
    done = await outcomes(scene, 12, Options(strategy=strategy))

    by_agent = Counter(outcome.agent_id for outcome in done)
    assert [outcome.failure for outcome in done] == [None] * 12
    assert set(by_agent) == {one.agent_id for one in fleet}
    if strategy is Strategy.ROUND_ROBIN:
        assert sorted(by_agent.values()) == [4, 4, 4]


async def test_task_goes_to_the_agent_that_has_what_is_wanted(scene: Scene) -> None:
    await scene.start(worker())
    wanted = await scene.start(worker(tags=("gpu",)))
    done = await outcomes(scene, 4, Options(wanted=Wanted(tags={"gpu"})))

    assert {outcome.agent_id for outcome in done} == {wanted.agent_id}


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_batch_with_a_strategy_is_done_whole_however_few_the_slots(scene: Scene, strategy: Strategy) -> None:
    fleet = [await scene.start(worker(slots=slots)) for slots in (2, 4)]
    client = await scene.client()

    handles = [handle async for handle in client.submit_many(CAPABILITY, range(60), options=Options(strategy=strategy))]
    done = [await handle.outcome(timeout="100s") for handle in handles]

    assert [outcome.body for outcome in done] == [str(number).encode() for number in range(60)]
    assert {outcome.agent_id for outcome in done} == {one.agent_id for one in fleet}
