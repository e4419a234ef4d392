"""Whom the strategies pick on a real fleet: counted by who executed.

A pick is a preference: a task that waited a second for its agent is anybody's. So the counts may differ from
the assignment by MOVED of the tasks on a slow machine.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from uuid import uuid4

import pytest

from coditect import Agent, Client, Options, Strategy, Wanted
from coditect.agent.heartbeat import Usage
from coditect.agent.program import Host, running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.rabbitmq import AmqpBroker
from coditect.model.ids import AgentId
from coditect.registry.redis import RedisRegistry
from coditect.settings.settings import Settings
from tests.fleet import remove_queues
from tests.support import eventually

pytestmark = pytest.mark.servers

MOVED = 0.1
ALIKE = Host(sample=lambda: Usage(cpu_percent=0.0, resident_bytes=0))
"""The agents of a test share one process: what it uses at the moment of each one's beat says nothing of them."""


@dataclass(slots=True)
class SelectionFleet:
    """Agents of one capability with a registry of their own, and a client."""

    stack: AsyncExitStack
    settings: Settings
    capability: str
    prefix: str
    client: Client
    registry: RedisRegistry

    async def start(
        self, slots: int, *, sick: bool = False, tags: Sequence[str] = (), strategy: Strategy | None = None
    ) -> AgentId:
        agent = Agent("worker", slots=slots, tags=tags)

        @agent.capability(self.capability, timeout="10s", strategy=strategy)
        async def work(number: int) -> int:
            await asyncio.sleep(0.01)
            if sick and number < 0:
                raise ValueError("sick")
            return number

        broker = await self.stack.enter_async_context(AmqpBroker(self.settings.amqp_url, name="worker"))
        registry = await self.stack.enter_async_context(RedisRegistry(self.settings.redis_url, prefix=self.prefix))
        runtime = await self.stack.enter_async_context(
            running_agent(
                agent,
                broker=broker,
                registry=registry,
                settings=replace(self.settings, beat_seconds=0.1),
                clock=SystemClock(),
                drain=asyncio.Event(),
                host=ALIKE,
            )
        )
        await eventually(lambda: self._ready(runtime.agent_id))
        return runtime.agent_id

    async def _ready(self, agent_id: AgentId) -> bool:
        record = await self.registry.get(agent_id)
        return record is not None and record.load.status.value in ("idle", "busy")

    async def one_by_one(self, many: int, options: Options) -> Counter[AgentId | None]:
        done = Counter[AgentId | None]()
        for number in range(many):
            handle = await self.client.submit(self.capability, number, options=options)
            done[(await handle.outcome(timeout="100s")).agent_id] += 1
        return done

    async def at_once(self, many: int, options: Options) -> Counter[AgentId | None]:
        sent = self.client.submit_many(self.capability, range(many), options=options)
        outcomes = [await handle.outcome(timeout="100s") async for handle in sent]
        assert [outcome.failure for outcome in outcomes] == [None] * many
        return Counter(outcome.agent_id for outcome in outcomes)


@pytest.fixture
async def fleet(settings: Settings, capability: str) -> AsyncIterator[SelectionFleet]:
    prefix = f"test-{uuid4().hex}:"
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(AmqpBroker(settings.amqp_url, name="client"))
        registry = await stack.enter_async_context(RedisRegistry(settings.redis_url, prefix=prefix))
        stack.push_async_callback(remove_queues, broker, [capability])
        client = await stack.enter_async_context(Client(broker, registry))
        agents = await stack.enter_async_context(AsyncExitStack())
        yield SelectionFleet(agents, settings, capability, prefix, client, registry)


def moved(done: Counter[AgentId | None], wanted: dict[AgentId, int]) -> int:
    """How many tasks were done by another agent than they should have been."""
    return sum(max(0, done[agent] - many) for agent, many in wanted.items())


async def test_round_robin_asks_each_in_its_turn(fleet: SelectionFleet) -> None:
    agents = [await fleet.start(4) for _ in range(3)]

    done = await fleet.one_by_one(60, Options(strategy=Strategy.ROUND_ROBIN))

    assert done.total() == 60
    assert moved(done, dict.fromkeys(agents, 20)) <= 60 * MOVED


@pytest.mark.parametrize("strategy", [Strategy.LEAST_BUSY, Strategy.LOAD_BALANCED, Strategy.BEST_MATCH])
async def test_batch_follows_the_slots(fleet: SelectionFleet, strategy: Strategy) -> None:
    small, middle, large = [await fleet.start(slots) for slots in (4, 8, 16)]

    done = await fleet.at_once(28, Options(strategy=strategy))

    assert done.total() == 28
    assert moved(done, {small: 4, middle: 8, large: 16}) <= 28 * MOVED + 1


async def test_batch_beyond_the_fleet_s_room_is_done_by_all_of_it(fleet: SelectionFleet) -> None:
    agents = [await fleet.start(slots) for slots in (4, 8)]

    done = await fleet.at_once(600, Options(strategy=Strategy.LOAD_BALANCED))

    assert done.total() == 600
    assert set(done) == set(agents)


async def test_load_balanced_shares_by_slots_one_by_one(fleet: SelectionFleet) -> None:
    small, large = await fleet.start(4), await fleet.start(12)

    done = await fleet.one_by_one(160, Options(strategy=Strategy.LOAD_BALANCED))

    assert done[small] + done[large] == 160
    assert 20 <= done[small] <= 65  # a quarter is 40; it is drawn by chance: four standard deviations


async def test_load_balanced_avoids_an_agent_whose_tasks_fail(fleet: SelectionFleet) -> None:
    sick, well = await fleet.start(8, sick=True), await fleet.start(8)
    options = Options(pin=sick, max_attempts=1)
    async with AmqpBroker(fleet.settings.amqp_url, name="other") as broker, Client(broker, fleet.registry) as other:
        for _ in range(40):  # by another client: what one has read of the registry it believes for a second
            await (await other.submit(fleet.capability, -1, options=options)).outcome(timeout="100s")

    async def told() -> bool:
        record = await fleet.registry.get(sick)
        return record is not None and record.load.failed >= 30

    await eventually(told)
    done = await fleet.one_by_one(60, Options(strategy=Strategy.LOAD_BALANCED))

    assert done[well] >= 45


async def test_best_match_is_the_one_that_has_what_is_wanted(fleet: SelectionFleet) -> None:
    for tags in ([], ["eu"], ["gpu"]):
        await fleet.start(4, tags=tags)
    both = await fleet.start(4, tags=["gpu", "eu"])

    done = await fleet.one_by_one(30, Options(wanted=Wanted(tags={"gpu", "eu"})))

    assert done[both] >= 30 * (1 - MOVED)


async def test_capability_s_own_strategy_is_followed_by_a_call_without_one(fleet: SelectionFleet) -> None:
    small, large = [await fleet.start(slots, strategy=Strategy.LOAD_BALANCED) for slots in (4, 12)]

    done = await fleet.one_by_one(160, Options())

    assert done[small] + done[large] == 160
    assert done[small] <= 65  # the broker alone gives it half; a quarter is 40, drawn by chance
