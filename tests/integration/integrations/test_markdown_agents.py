"""A folder of markdown agents on real servers: their tools come from the registry, over one connection."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from coditect.local import PrivateServers
from tests.chat_stub import calls, chat_stub, says
from tests.integration.agent.fleet import client_of, open_fleet
from tests.servers import ROOT

pytestmark = pytest.mark.servers

COUNTER = """---
name: counter
description: Counts words.
tools: text.summarize
---
Summarize what you are given.
"""
TASKS = 6


async def connections(redis: Redis) -> int:
    return int((await redis.info("stats"))["total_connections_received"])


async def test_tasks_find_their_tools_over_one_connection_to_the_registry(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "counter.md").write_text(COUNTER)
    answers = [calls(("text_summarize", {"text": "One. Two."})), says("done")] * TASKS
    async with (
        chat_stub(*answers) as stub,
        open_fleet(own_servers, tmp_path) as fleet,
        client_of(own_servers) as client,
        Redis.from_url(own_servers.redis_url) as redis,
    ):
        await fleet.run("coditect", "agent", "run", str(ROOT / "agents" / "summarizer.py"))
        arguments = ("coditect", "agent", "run", "--name", "helpers", "--markdown", str(tmp_path / "agents"))
        await fleet.run(*arguments, CODITECT_CHAT_URL=stub.url, CODITECT_CHAT_MODEL="stub-1")

        assert await client.request("helpers.counter", "text") == "done"
        before = await connections(redis)
        for _ in range(TASKS - 1):
            assert await client.request("helpers.counter", "text") == "done"
        opened = await connections(redis) - before

    tools = [one["tools"][0]["function"]["name"] for one in stub.requests]
    assert tools == ["text_summarize"] * (2 * TASKS)
    assert opened < TASKS - 1, "each task opened a connection"
