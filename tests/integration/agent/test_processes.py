"""`coditect agent run --processes N`."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from tests.integration.agent.fleet import Fleet, client_of, submitted, unanswered
from tests.support import eventually

pytestmark = pytest.mark.servers


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


async def registered(registry: RedisRegistry) -> int:
    return len(await registry.find(Search()))


async def test_processes_work_survive_deaths_and_drain_together(fleet: Fleet) -> None:
    parent = await fleet.start("--processes", "2")
    async with client_of(fleet.servers) as client, RedisRegistry(fleet.servers.redis_url) as registry:

        async def both() -> bool:
            return await registered(registry) == 2

        await eventually(both)
        handles = await submitted(client, 300)
        first = children(parent.pid)
        first[0].kill()
        await eventually(lambda: len(children(parent.pid)) == 2 and children(parent.pid) != first)
        assert await unanswered(handles) == []
        await eventually(both)

        parent.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(parent.wait, 20) == 0
        assert await registered(registry) == 0


async def test_killed_parent_leaves_no_process(fleet: Fleet) -> None:
    parent = await fleet.start("--processes", "2")
    left = children(parent.pid)
    assert len(left) == 2

    parent.kill()

    await eventually(lambda: not any(one.is_running() and one.status() != "zombie" for one in left))


async def test_hung_thread_keeps_no_drained_process_alive(fleet: Fleet, tmp_path: Path) -> None:
    hanging = tmp_path / "hanging.py"
    hanging.write_text(
        "import time\nfrom pathlib import Path\nfrom coditect import Agent\nagent = Agent('hanging')\n\n"
        "@agent.capability('hang.on')\ndef hang(path):\n    Path(path).touch()\n    time.sleep(600)\n"
    )
    process = await fleet.start(target=str(hanging), CODITECT_DRAIN_SECONDS="0.5")
    async with client_of(fleet.servers) as client:
        await client.submit("hang.on", str(tmp_path / "started"))
        await eventually((tmp_path / "started").exists)

        process.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(process.wait, 15) == 0
