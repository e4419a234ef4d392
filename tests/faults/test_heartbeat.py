"""The `heartbeat` in `CODITECT_AMQP_URL` is what each connection of ours agrees to with the broker."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from chaos.faults.proxy import FaultProxy
from coditect.client.client import Client
from tests.support import eventually

pytestmark = pytest.mark.servers
NO_REDIS = "redis://127.0.0.1:1/0"
AGENT = str(Path(__file__).with_name("poison_program.py"))


def agreed(proxy: FaultProxy) -> set[int]:
    return {seconds for pipe in proxy.ever for seconds in pipe.heartbeats}


@pytest.mark.parametrize("command", ["doctor", "topology apply --dry-run", f"agent run {AGENT}"])
async def test_programs_connect_with_the_heartbeat_that_is_set(proxy: FaultProxy, tmp_path: Path, command: str) -> None:
    addresses = {"CODITECT_AMQP_URL": f"{proxy.url}?heartbeat=7", "CODITECT_REDIS_URL": NO_REDIS}
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "coditect", *command.split()),
        env={**os.environ, **addresses},
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: agreed(proxy) or program.returncode is not None)
    finally:
        if program.returncode is None:
            program.kill()
        await program.wait()

    assert agreed(proxy) == {7}


async def test_client_connects_with_the_heartbeat_that_is_set(proxy: FaultProxy) -> None:
    addresses = {"CODITECT_AMQP_URL": f"{proxy.url}?heartbeat=9", "CODITECT_REDIS_URL": NO_REDIS}

    async with Client.from_env(addresses):
        assert agreed(proxy) == {9}
