"""What a dispatcher's user of Redis may need, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from coditect.registry.redis import RedisRegistry
from dispatcher.taskgraph.port import JobState
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import CAPABILITY, Scene
from tests.docs.pages import blocks
from tests.integration.registry.private_redis import PrivateRedis
from tests.servers import ROOT

pytestmark = pytest.mark.servers

PAGE = ROOT / "docs" / "task-graph.md"


async def test_user_of_the_documentation_may_do_all_that_is_needed_and_nothing_dangerous(
    client: Redis, server: PrivateRedis
) -> None:
    (rule,) = [block.text for block in blocks(PAGE) if block.text.startswith("user ")]
    name, *rights = rule.split()[1:]
    client.acl_setuser(name, enabled=True, reset=True)
    untyped: Any = client
    untyped.execute_command(
        "ACL", "SETUSER", name, *[right for right in rights if not right.startswith("#")], ">secret"
    )
    url = server.url.replace("redis://", f"redis://{name}:secret@")

    async with RedisTaskGraph(url, worker="dispatcher-1", timeout_seconds=10) as graph, RedisRegistry(url) as registry:
        scene = Scene(graph)
        await scene.create(scene.job("a"), scene.job("b", "a"))
        assert await scene.adopt() == ["a"]
        await scene.tell(JobState.FINISHED, "a")
        await graph.remember(scene.shard)
        assert await graph.known([scene.shard])
        assert await scene.requests() == []
        assert not await graph.difference([scene.job("a", state=JobState.FINISHED)])
        assert await graph.adopt([scene.shard], {CAPABILITY: 1})
        await graph.remove(scene.workflow, ["a", "b"])
        assert await registry.capabilities() == frozenset()
    with Redis.from_url(url) as limited:
        for command in (["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "dir"], ["GET", "other"]):
            with pytest.raises(NoPermissionError):
                limited.execute_command(*command)
