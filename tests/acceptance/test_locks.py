"""Locks on real servers: a deadlock of two agents, and a holder that stands still past its lock's TTL."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coditect.local import PrivateServers
from tests.acceptance.lock_agent import HOLD_SECONDS
from tests.integration.agent.fleet import client_of, open_fleet
from tests.servers import ROOT
from tests.support import patient

pytestmark = pytest.mark.servers

GONE_SECONDS = 5.0
"""The longest time for which a lock that expired is listed."""
LINE_SECONDS = 30.0
LOCK_AGENT = Path(__file__).with_name("lock_agent.py")


@asynccontextmanager
async def holder(servers: PrivateServers, folder: Path, text: str) -> AsyncIterator[Process]:
    program = [sys.executable, "-m", "tests.acceptance.lock_holder", str(folder), text]
    urls = {"CODITECT_AMQP_URL": servers.amqp_url, "CODITECT_REDIS_URL": servers.redis_url}
    process = await asyncio.create_subprocess_exec(*program, stdin=PIPE, stdout=PIPE, env=os.environ | urls, cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(LINE_SECONDS):
        return (await process.stdout.readline()).decode().strip()


def tell(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"write\n")


@pytest.mark.timeout(120)
async def test_a_holder_that_stood_still_past_its_ttl_is_refused_by_the_resource_that_checks_the_fence(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        async with holder(own_servers, shared, "first") as first:
            fence = int((await line(first)).removeprefix("holds "))
            async with holder(own_servers, shared, "second") as second:
                first.send_signal(signal.SIGSTOP)
                next_fence = int((await line(second)).removeprefix("holds "))
                tell(second)
                written = await line(second)
            tell(first)
            first.send_signal(signal.SIGCONT)
            late = {await line(first), await line(first)}
        async with asyncio.timeout(GONE_SECONDS):  # what a killed holder did not release ends with its TTL
            while [row async for row in client.locks.list()]:
                await asyncio.sleep(0.1)

    assert next_fence > fence
    assert written == "written"
    assert late == {"lost", "refused"}
    assert (shared / "shared.txt").read_text() == "second"


@pytest.mark.timeout(120)
async def test_two_agents_that_take_two_locks_in_opposite_order_end_with_one_deadlock_within_a_second(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        for _ in range(2):
            await fleet.start(target=str(LOCK_AGENT))
        in_process = await client.request("lock.process", "x", int, timeout="1m")

        handles = [await client.submit("lock.cross", order) for order in (["x", "y"], ["y", "x"])]
        outcomes = await asyncio.gather(*(handle.outcome(timeout="1m") for handle in handles))

    refused = [one for one in outcomes if one.failure is not None]
    (done,) = (one for one in outcomes if one.failure is None)
    assert in_process > 0
    assert [one.failure.type for one in refused if one.failure is not None] == ["Deadlock"]
    message = refused[0].failure.message if refused[0].failure is not None else ""
    assert "waits for x" in message
    assert "waits for y" in message
    ran_seconds = [((one.finished_at_ms or 0) - (one.started_at_ms or 0)) / 1000 for one in (*refused, done)]
    assert max(ran_seconds) < HOLD_SECONDS + patient(1.0)
