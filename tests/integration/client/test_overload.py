"""Too much work, on a real broker: its queues refuse, and the client says when to come back or slows down."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from coditect import Agent
from coditect.errors import Overloaded, TopologyMismatch
from tests.fleet import running
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers

MOST = 10


def bounded(capability: str, gate: asyncio.Event, *, seconds: float = 0.0) -> Agent:
    agent = Agent("bounded", slots=1)

    @agent.capability(capability, max_queued=MOST)
    async def work(number: int) -> int:
        await gate.wait()
        await asyncio.sleep(seconds)
        return number

    return agent


async def test_queue_that_is_full_refuses_p2_then_p1_and_p0_gets_in(servers: Servers) -> None:
    name, gate = f"test.c{uuid4().hex[:8]}", asyncio.Event()
    async with running(bounded(name, gate), servers) as fleet:
        taken = dict.fromkeys(("p2", "p1"), 0)
        for priority in taken:
            with pytest.raises(Overloaded) as refused:
                for _ in range(10 * MOST):
                    await fleet.client.submit(name, 0, priority=priority)
                    taken[priority] += 1
            assert float(str(refused.value.facts["retry_after"])) > 0
        urgent = [await fleet.client.submit(name, number, priority="p0") for number in range(5 * MOST)]
        gate.set()

        assert [await one.result(int) for one in urgent] == list(range(5 * MOST))
    assert MOST <= taken["p2"] < taken["p1"]


async def test_agent_with_another_bound_than_the_queues_have_does_not_start(servers: Servers) -> None:
    name, gate = f"test.c{uuid4().hex[:8]}", asyncio.Event()
    other = Agent("other")
    other.capability(name, max_queued=MOST + 1)(lambda task: task)
    async with running(bounded(name, gate), servers):
        with pytest.raises(TopologyMismatch, match="x-max-length") as refused:
            async with running(other, servers):
                pass

    assert "coditect topology apply --dry-run" in str(refused.value.facts["fix"])


async def test_batch_of_many_times_the_bound_is_taken_whole(servers: Servers) -> None:
    name, gate, many = f"test.c{uuid4().hex[:8]}", asyncio.Event(), 20 * MOST
    gate.set()
    async with running(bounded(name, gate, seconds=0.01), servers) as fleet:
        batch = fleet.client.submit_many(name, range(many), priority="p2")
        handles = [handle async for handle in batch]

        assert [await handle.result(int) for handle in handles] == list(range(many))
        await eventually(lambda: fleet.runtime.load().completed == many)
