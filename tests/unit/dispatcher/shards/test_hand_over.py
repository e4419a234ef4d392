"""Shards that are handed over: at once, and what their former owner published is not published again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from coditect import Agent, Workflow
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.consumer import MemoryConsumer
from coditect.broker.topology import Topology, capability_queues
from coditect.client.client import Client
from coditect.model.message import Message
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.wire import routing
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.shards.completions import CommandAnswer
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_worker import CAPABILITY, start_of

SHARDS = 4
WORKFLOWS = 12
MANY_SHARDS = 16


class Silent(MemoryRegistry):
    """Does not say what the agents offer: whoever would answer for a task that no agent ran waits."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def capabilities(self) -> frozenset[str]:
        self.asked.set()
        await asyncio.Event().wait()
        return frozenset()


class Frozen(MemoryBroker):
    """While it is not `thawed` it neither declares nor ends a consumer."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, name="own")
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.declaring = 0

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        self.declaring += not self.thawed.is_set()
        await self.thawed.wait()
        await super().declare(topology, lazily=lazily)


@in_virtual_time
async def test_shards_are_free_within_a_second_while_the_broker_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, now = MemoryServer(), asyncio.get_running_loop().time
    cancel = MemoryConsumer.cancel
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database, registry = await enter(MemoryDatabase()), MemoryRegistry()
        own, other = await enter(Frozen(server)), await enter(MemoryBroker(server, name="other"))
        leaving, ending = await enter(AsyncExitStack()), await enter(AsyncExitStack())
        tenures = []
        for end, broker in ((ending, own), (leaving, other)):
            plane = running_dispatcher(broker=broker, registry=registry, clock=SystemClock(), database=database)
            tenures.append((await end.enter_async_context(plane)).ownership)
        await eventually(lambda: {len(one.workers) for one in tenures} == {MANY_SHARDS // 2})

        async def cancel_when_thawed(consumer: MemoryConsumer) -> None:
            await own.thawed.wait()
            await cancel(consumer)

        await leaving.aclose()
        own.thawed.clear()
        monkeypatch.setattr(MemoryConsumer, "cancel", cancel_when_thawed)
        await eventually(lambda: own.declaring)  # a step takes what the other one left
        began, ended = now(), asyncio.create_task(ending.aclose())
        while await database.read(leases.beats):
            await asyncio.sleep(0.01)
        took = now() - began
        own.thawed.set()
        await ended

    assert took < 1


@in_virtual_time
async def test_shards_are_free_within_a_second_while_the_broker_is_blocked_and_a_notice_waits() -> None:
    server, registry, now = MemoryServer(), Silent(), asyncio.get_running_loop().time
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(MemoryDatabase())
        own, other = await enter(MemoryBroker(server, name="own")), await enter(MemoryBroker(server, name="other"))
        ending = await enter(AsyncExitStack())
        options = DispatcherOptions(shards=MANY_SHARDS)
        plane = running_dispatcher(
            broker=own, registry=registry, clock=SystemClock(), database=database, options=options
        )
        workers = (await ending.enter_async_context(plane)).ownership.workers
        await other.declare(capability_queues(CAPABILITY))
        await other.publish(Message(b"{}", reply_to="my.answers"), exchange=routing.TASKS, routing_key="no.such.p1")
        await registry.asked.wait()
        server.block()
        for workflow in (f"w{number}" for number in range(100)):
            answer: CommandAnswer[object] = CommandAnswer()
            workers[shard_of(workflow, MANY_SHARDS)].put(start_of(workflow), answer)
            await answer.future

        began, end = now(), asyncio.create_task(ending.aclose())
        while await database.read(leases.beats):
            await asyncio.sleep(0.01)
        took = now() - began
        server.unblock()
        await end

    assert took < 1
    assert now() - began > 1, "the notice was waited for"


async def test_nothing_that_was_published_runs_twice_when_its_shard_is_handed_over() -> None:
    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    executed: list[str] = []
    may_end = asyncio.Event()
    worker = Agent("worker", slots=2 * WORKFLOWS)

    @worker.capability("hand.over")
    async def work(number: int) -> None:
        executed.append(str(number))
        await may_end.wait()

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(MemoryDatabase())

        async def dispatcher() -> Dispatcher:
            options = DispatcherOptions(shards=SHARDS)
            own = await enter(MemoryBroker(server, name=options.owner))
            plane = running_dispatcher(broker=own, registry=registry, clock=clock, database=database, options=options)
            return await enter(plane)

        first = await dispatcher()
        broker = await enter(MemoryBroker(server, name="worker"))
        agent = running_agent(
            worker, broker=broker, registry=registry, settings=Settings(), clock=clock, drain=asyncio.Event()
        )
        await enter(agent)
        client = await enter(Client(await enter(MemoryBroker(server, name="client")), registry, clock=clock))
        runs = []
        for number in range(WORKFLOWS):
            flow = Workflow("one")
            flow.task("hand.over", number, name="only")
            runs.append(await client.start(flow))
        await eventually(lambda: len(executed) == WORKFLOWS)

        second = await dispatcher()
        await eventually(lambda: len(second.ownership.workers) == SHARDS // 2 == len(first.ownership.workers))
        may_end.set()

        assert [await run.wait(timeout="10s") for run in runs] == ["completed"] * WORKFLOWS
        assert len(executed) == WORKFLOWS
        nodes = [row for run in runs async for row in run.nodes()]
        assert {row.fence for row in nodes} == {1}
