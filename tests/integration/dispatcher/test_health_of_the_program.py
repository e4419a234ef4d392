"""What a dispatcher process tells an orchestrator over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coditect.local.servers.ports import free_ports
from dispatcher.chaos.faults.proxy import fault_proxy
from tests.servers import Servers
from tests.support import eventually, probed

pytestmark = pytest.mark.servers


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


async def test_program_says_over_http_that_it_is_ready(servers: Servers, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'ledger.db'}"
    async with dispatcher(servers, tmp_path, amqp_url=servers.amqp_url, store=store) as port:
        assert await probed(port, "/readyz") == (200, "ready")


@pytest.mark.timeout(120)
async def test_program_that_is_cut_off_from_the_broker_alone_is_alive_and_not_ready(
    servers: Servers, tmp_path: Path
) -> None:
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
