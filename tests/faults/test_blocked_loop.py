"""A handler that blocks the event loop of an agent process, in a fleet of several processes under one parent."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from coditect.client.client import Client
from coditect.errors import TaskFailed
from coditect.local import PrivateServers
from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from tests.integration.agent.fleet import client_of, open_fleet
from tests.support import eventually

pytestmark = pytest.mark.servers

PROGRAM = str(Path(__file__).with_name("blocking_program.py"))


@pytest.mark.parametrize("how", ["sleeps", "spins", "holds_the_interpreter"])
async def test_blocking_handler_wedges_nothing_for_good(how: str, own_servers: PrivateServers, tmp_path: Path) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        parent = await fleet.start("--processes", "3", target=PROGRAM, CODITECT_STALL_SECONDS="1")
        first = {one.pid for one in psutil.Process(parent.pid).children()}

        wedge = await client.submit("block.loop", how)
        with pytest.raises(TaskFailed) as failed:
            await wedge.result(timeout="4m")

        assert failed.value.facts["reason"] == "process_died"
        agents = [pid for _, pid, parent_pid in fleet.effects() if int(parent_pid) == parent.pid]
        assert 1 <= len(agents) <= 2, "agents that died of it"
        assert 1 <= len(fleet.effects()) - len(agents) <= 2, "attempts in a process of their own"
        assert await working(client)
        log = fleet.log(parent)
        assert ("stood still for too long" in log) == (how != "holds_the_interpreter")
        assert "blocking_program.py" in log
        assert first - {one.pid for one in psutil.Process(parent.pid).children()}


async def test_fleet_is_whole_again_after_a_process_stands_stopped(own_servers: PrivateServers, tmp_path: Path) -> None:
    async with (
        open_fleet(own_servers, tmp_path) as fleet,
        client_of(own_servers) as client,
        RedisRegistry(own_servers.redis_url) as registry,
    ):
        await fleet.start("--processes", "2", target=PROGRAM, CODITECT_STALL_SECONDS="1")

        async def agents() -> set[str]:
            return {str(one.agent_id) for one in await registry.find(Search(capability="work.do"))}

        async def whole() -> bool:
            return len(await agents()) == 2

        await eventually(whole)
        before = await agents()
        await client.submit("block.loop", "stands_stopped")
        await eventually(fleet.effects)

        async def replaced() -> bool:
            return bool(await agents() - before) and await whole()

        await eventually(replaced, seconds=100)
        assert await working(client)


async def working(client: Client) -> bool:
    """Whether the fleet does what it is asked for, all of it."""
    handles = [handle async for handle in client.submit_many("work.do", range(40))]
    return [await handle.result(int, timeout="100s") for handle in handles] == list(range(40))
