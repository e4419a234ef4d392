"""A deadline travels to the tasks that a task causes, however long it would let them take."""

from __future__ import annotations

from uuid import uuid4

import pytest

from coditect import Agent, Context
from tests.fleet import running
from tests.servers import Servers

pytestmark = pytest.mark.servers


async def test_deadline_travels_to_the_children_of_a_task_and_to_theirs(servers: Servers) -> None:
    name = f"test.c{uuid4().hex[:8]}"
    agent = Agent("family", slots=4)
    seen: list[int | None] = []

    @agent.capability(name)
    async def ask(generations: int, ctx: Context) -> None:
        seen.append(ctx.deadline_ms)
        if generations:
            await ctx.request(name, generations - 1, timeout="24h")

    async with running(agent, servers) as fleet:
        await fleet.client.request(name, 2, timeout="30s")

    assert len(seen) == 3
    assert seen[0] is not None
    assert len(set(seen)) == 1
