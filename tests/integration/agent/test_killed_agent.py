"""What a killed agent had in hand runs elsewhere within a second, also what another had handed back before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from coditect.agent.quarantine import Quarantine
from coditect.aio.supervisor import Supervisor
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology, capability_queues
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from coditect.wire import routing
from coditect.wire.tasks import read_task
from tests.faults.node import Node
from tests.integration.agent.fleet import Fleet, client_of
from tests.support import eventually, patient

pytestmark = pytest.mark.servers

CAPABILITY = "work.do"
TASKS = 8
MILLISECONDS = 50_000
ELSEWHERE_SECONDS = 1.0


async def hand_back(broker: AmqpBroker, registry: RedisRegistry) -> None:
    """Do with all that waits as an agent does that has no slot for it."""
    queue = routing.task_queue(CAPABILITY, Priority.P1)
    async with Supervisor() as background:
        quarantine = Quarantine(registry, AgentId("full-1"), background)
        taken = [await broker.get(queue) for _ in range(TASKS)]
        deliveries = [one for one in taken if one is not None]
        await quarantine.hand_back(read_task(one.message, one.routing_key) for one in deliveries)
        await eventually(lambda: len(background) == 0)  # an agent waits no longer than a moment for the registry
    assert len(deliveries) == TASKS
    for one in deliveries:
        one.requeue()


def runs(fleet: Fleet, process: int) -> Sequence[str]:
    return [task for what, task, pid in fleet.effects() if (what, pid) == ("start", str(process))]


async def test_what_was_handed_back_to_a_killed_agent_runs_elsewhere_within_a_second(fleet: Fleet) -> None:
    servers = fleet.servers
    async with (
        client_of(servers) as client,
        AmqpBroker(servers.amqp_url, name="full") as broker,
        RedisRegistry(servers.redis_url) as registry,
    ):
        await broker.declare(base_topology() + capability_queues(CAPABILITY))
        handles = [handle async for handle in client.submit_many(CAPABILITY, [MILLISECONDS] * TASKS)]
        await hand_back(broker, registry)
        victim = await fleet.start()
        await eventually(lambda: len(runs(fleet, victim.pid)) == TASKS)
        heir = await fleet.start()

        began = asyncio.get_running_loop().time()
        victim.kill()
        await eventually(lambda: len(runs(fleet, heir.pid)) == TASKS)
        took = asyncio.get_running_loop().time() - began

        assert sorted(runs(fleet, heir.pid)) == sorted(str(one.task_id) for one in handles), "each of them once"
        assert took <= patient(ELSEWHERE_SECONDS), f"{took:.2f} s"
        assert "process of its own" not in fleet.log(heir) and "in one of its own" not in fleet.log(heir)


@pytest.mark.parametrize("replies", ["classic", "quorum"])
async def test_what_a_killed_agent_leaves_expires_by_itself(fleet: Fleet, replies: str) -> None:
    broker = Node(fleet.servers, fleet.folder)
    victim = await fleet.start(CODITECT_REPLY_QUEUE=replies)
    async with RedisRegistry(fleet.servers.redis_url) as registry:
        (victims,) = [one.registration for one in await registry.find(Search()) if one.registration.pid == victim.pid]

    victim.kill()
    await asyncio.to_thread(victim.wait)
    rows = json.loads(await broker.control("list_queues", "name", "type", "arguments", "--formatter", "json"))

    left = {row["name"]: row for row in rows if victims.agent_id in row["name"]}
    assert {name: row["type"] for name, row in left.items()} == {
        f"agent.{victims.agent_id}.tasks": "quorum",
        f"agent.{victims.agent_id}.next": replies,
        f"agent.{victims.agent_id}.mail": replies,
        f"reply.{victims.agent_id}": replies,
    }
    assert [name for name, row in left.items() if "x-expires" not in str(row["arguments"])] == []
