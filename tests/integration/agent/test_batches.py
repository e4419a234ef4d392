"""Batches on a real broker: its credit lets them fill, and an agent that is killed loses no task of one."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.agent.fleet import Fleet, client_of

pytestmark = pytest.mark.servers
AGENT = str(Path(__file__).with_name("batch_agent.py"))


async def test_hundred_waiting_tasks_become_full_batches_although_an_agent_dies(fleet: Fleet) -> None:
    agent = await fleet.start(target=AGENT)
    async with client_of(fleet.servers) as client:
        assert await client.request("batch.size", 1, int) == 1
        handles = [one async for one in client.submit_many("batch.size", range(3_000))]
        agent.kill()
        await fleet.start(target=AGENT)
        sizes = await asyncio.gather(*(one.result(int, timeout="60s") for one in handles))

    assert sizes.count(100) > 500, Counter(sizes)  # with too little credit none fills; a busy machine delivers late
