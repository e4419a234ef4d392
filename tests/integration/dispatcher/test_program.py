"""The dispatcher as a program: begun by the command line, probed over HTTP, ended by a signal or by its store."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from chaos.faults.proxy import fault_proxy
from coditect import Workflow
from coditect.local import PrivateServers
from coditect.local.servers import free_ports
from coditect.operations.status import cluster_status
from coditect.workflow.states import WorkflowState
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.programs import Program
from tests.servers import Servers
from tests.support import eventually, probed

pytestmark = pytest.mark.servers

SHARDS = 2
LEDGER = "ledger.db"
END_SECONDS = 20.0


async def run(fleet: Fleet) -> Program:
    store = f"sqlite:{fleet.folder / LEDGER}"
    return await fleet.run("coditect", "dispatcher", "run", "--store", store, "--shards", str(SHARDS))


async def test_command_finishes_work_and_ends_on_sigterm(own_servers: PrivateServers, tmp_path: Path) -> None:
    flow = Workflow("two")
    flow.task("work.do", 10, name="last", after=[flow.task("work.do", 10, name="first")])
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.start()
        process = await run(fleet)
        (owner,) = {one.owner for one in (await cluster_status(client._broker)).shards}
        assert owner is not None

        state = await (await client.start(flow)).wait(timeout=60)
        process.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(process.wait, END_SECONDS) == 0
        assert owner.startswith(f"dispatcher-{process.pid}-")
        assert state is WorkflowState.COMPLETED


async def test_store_that_fails_ends_the_program_and_says_why(own_servers: PrivateServers, tmp_path: Path) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet:
        process = await run(fleet)
        full_bytes = (tmp_path / f"{LEDGER}-wal").stat().st_size  # what it writes next is refused, its log is smaller

        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (full_bytes, full_bytes))

        assert await asyncio.to_thread(process.wait, END_SECONDS) == 1
        (said,) = [line for line in fleet.log(process).splitlines() if "The dispatcher cannot run" in line]
        assert LEDGER in said


@asynccontextmanager
async def dispatcher(servers: Servers, folder: Path, *, amqp_url: str, store: str) -> AsyncIterator[int]:
    """One that is ready, and its health port."""
    (port,) = free_ports(1)
    ready = folder / "ready"
    environment = {
        **os.environ,
        "CODITECT_AMQP_URL": amqp_url,
        "CODITECT_REDIS_URL": servers.redis_url,
        "CODITECT_READY_FILE": str(ready),
        "CODITECT_STORE_URL": store,
        "CODITECT_SHARDS": "1",
        "CODITECT_HEALTH_PORT": str(port),
        "CODITECT_LOG_LEVEL": "ERROR",
    }
    process = subprocess.Popen([sys.executable, "-m", "dispatcher"], env=environment)
    try:
        await eventually(lambda: ready.exists() or process.poll() is not None)
        yield port
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(100)


@pytest.mark.timeout(120)
async def test_program_that_is_cut_off_is_alive_and_not_ready(servers: Servers, tmp_path: Path) -> None:
    """A restart would not mend it: `docs/failover.md`."""
    async with (
        fault_proxy(servers.amqp_url) as proxy,
        dispatcher(servers, tmp_path, amqp_url=proxy.url, store="memory:") as port,
    ):
        given_up = (503, "the dispatcher is cut off from the broker and gave its shards up")

        async def has_given_up() -> bool:
            return await probed(port, "/readyz") == given_up

        async def is_ready() -> bool:
            return await probed(port, "/readyz") == (200, "ready")

        proxy.path.cut_off()
        await eventually(has_given_up)
        assert await probed(port, "/livez") == (200, "alive")

        proxy.path.heal()
        await eventually(is_ready)
        assert await probed(port, "/livez") == (200, "alive")
