"""What a killed agent leaves on the broker."""

from __future__ import annotations

import asyncio
import json

import pytest

from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from tests.faults.node import Node
from tests.integration.agent.fleet import Fleet

pytestmark = pytest.mark.servers


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
