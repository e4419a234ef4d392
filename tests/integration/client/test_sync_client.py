"""The synchronous client on real servers, from threads of a program that has an event loop, too."""

from __future__ import annotations

import asyncio

import pytest

from coditect import Agent, Client, TaskRejected
from coditect.errors import BrokerUnavailable, UnknownCapability
from tests.fleet import running
from tests.servers import Servers

pytestmark = pytest.mark.servers


def _agent(capability: str) -> Agent:
    agent = Agent("syncer", slots=20)

    @agent.capability(capability)
    async def double(number: int) -> int:
        return 2 * number

    return agent


async def test_script_submits_waits_and_listens(servers: Servers, capability: str) -> None:
    asynchronous = Client.from_env({"CODITECT_AMQP_URL": servers.amqp_url, "CODITECT_REDIS_URL": servers.redis_url})

    def script() -> list[int]:
        with asynchronous.sync() as client:
            with pytest.raises(UnknownCapability):
                client.submit(f"{capability}x", 1)
            with client.events("task.completed") as events:
                assert client.request(capability, 21, int, timeout="20s") == 42
                assert next(events).type == "task.completed"
            with pytest.raises(TaskRejected):
                client.request(capability, "no number", timeout="20s")
            return [handle.result(int, timeout="100s") for handle in client.submit_many(capability, range(1_000))]

    async with running(_agent(capability), servers) as fleet:
        doubled = await asyncio.to_thread(script)

        assert doubled == [2 * number for number in range(1_000)]
        assert await fleet.broker.stats(f"reply.{asynchronous.name}") is None  # it was closed in order


@pytest.mark.endurance
def test_client_without_a_broker_says_so() -> None:
    nowhere = Client.from_env({"CODITECT_AMQP_URL": "amqp://127.0.0.1:9/", "CODITECT_REDIS_URL": "redis://127.0.0.1:9"})

    with pytest.raises(BrokerUnavailable), nowhere.sync():
        raise AssertionError("opened")
