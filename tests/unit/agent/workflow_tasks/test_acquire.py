"""The askings of a claim while nobody is there to answer: how long each lies in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from coditect.agent.owners import ACQUIRE_ANSWER_SECONDS, ACQUIRE_BACKOFF, AcquireClient, AcquireRequest
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import base_topology, capability_queues, shard_queues
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.wire import routing
from coditect.wire.tasks import read_task
from coditect.wire.workflow_tasks import Claim, Verdict
from tests.owner import ScriptedOwner, granting
from tests.unit.broker.virtual_time import in_virtual_time

GRANT = Claim(Verdict.RUN, 2)


class Asker:
    """An agent that has a delivery in hand and asks, and the owner of its shard, who is not there yet."""

    def __init__(self, server: MemoryServer, acquire: AcquireClient, delivery: Delivery, owner: ScriptedOwner) -> None:
        self._server = server
        self._delivery = delivery
        self.acquire = acquire
        self.owner = owner

    @property
    def question(self) -> AcquireRequest:
        task = read_task(self._delivery.message, self._delivery.routing_key)
        assert task.owner is not None
        return self.acquire.question(task, task.owner)

    def insist(self) -> asyncio.Task[Claim | None]:
        return asyncio.create_task(self.acquire.insist(self.question, self._delivery))

    def lying(self, queue: str) -> int:
        found = self._server.find(queue)
        return 0 if found is None else found.stats.messages


@asynccontextmanager
async def asker() -> AsyncIterator[Asker]:
    server = MemoryServer()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(MemoryBroker(server, name="test"))
        await broker.declare(base_topology() + capability_queues("work.do") + shard_queues(0))
        requests = await stack.enter_async_context(Requests(broker, name="a-1"))
        owner = ScriptedOwner(broker, decide=granting(fence=GRANT.fence))
        await owner.publish("work.do")
        delivery = await broker.get("tasks.work.do.p1")
        assert delivery is not None
        yield Asker(server, AcquireClient(broker, requests, SystemClock(), agent_id=AgentId("a-1")), delivery, owner)


@in_virtual_time
async def test_what_an_agent_asked_that_died_is_gone_when_somebody_comes() -> None:
    async with asker() as one:
        insisting = one.insist()
        await asyncio.sleep(0.1)
        assert one.lying("control.0") == 1
        insisting.cancel()

        await asyncio.sleep(ACQUIRE_ANSWER_SECONDS + ACQUIRE_BACKOFF.first)
        await one.owner.open()
        await asyncio.sleep(1.0)

        assert (one.owner.claims, one.lying(routing.UNROUTED_QUEUE)) == ([], 0)


@pytest.mark.parametrize("seconds", [5.3, 97.0, 300.0])
def test_agent_that_lives_always_has_one_asking_in_the_queue(seconds: float) -> None:
    @in_virtual_time
    async def answered_at_once() -> None:
        async with asker() as one:
            insisting = one.insist()
            await asyncio.sleep(seconds)
            assert one.lying("control.0") == 1

            await one.owner.open()
            claim = await asyncio.wait_for(insisting, 0.1)

            assert (claim, len(one.owner.claims), one.lying(routing.UNROUTED_QUEUE)) == (GRANT, 1, 0)

    answered_at_once()


@in_virtual_time
async def test_single_asking_is_gone_when_nobody_waits_for_its_answer() -> None:
    async with asker() as one:
        assert await one.acquire.ask(one.question) is None
        await asyncio.sleep(0.1)

        assert one.lying("control.0") == 0
