"""Many large bad messages leave an agent no larger than a few did."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from coditect.broker.port import Broker
from coditect.broker.rabbitmq import AmqpBroker
from tests.fleet import remove_queues
from tests.integration.wire import foreign, hostile
from tests.integration.wire.foreign import blocking
from tests.servers import Servers
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof]

AGENT = Path(__file__).with_name("flat_agent.py")
MIB = 1024 * 1024
BATCH = 30


@asynccontextmanager
async def agent_process(servers: Servers, capability: str, folder: Path) -> AsyncIterator[psutil.Process]:
    ready = folder / "ready"
    environment = {
        **os.environ,
        "CODITECT_AMQP_URL": servers.amqp_url,
        "CODITECT_REDIS_URL": servers.redis_url,
        "CODITECT_READY_FILE": str(ready),
        "CODITECT_LOG_LEVEL": "WARNING",
        "WIRE_CAPABILITY": capability,
    }
    command = [sys.executable, "-m", "coditect", "agent", "run", str(AGENT)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        await eventually(ready.exists)
        yield psutil.Process(process.pid)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(100)


async def _flood(url: str, broker: Broker, capability: str, bodies: list[bytes]) -> None:
    """Publishes them, waits until each is a dead letter, and throws the letters away."""
    for first in range(0, len(bodies), BATCH):
        some = bodies[first : first + BATCH]
        await blocking(foreign.publish, url, capability, *some)

        async def dead(many: int = len(some)) -> bool:
            stats = await broker.stats(f"dead.{capability}")
            return stats is not None and stats.messages == many

        await eventually(dead)
        while (delivery := await broker.get(f"dead.{capability}")) is not None:
            delivery.ack()
        await broker.release()


@pytest.mark.parametrize(
    "body",
    [b"[" * MIB, b'{"say": "' + b"x" * (MIB - 10) + b'"}'],
    ids=["nested a million deep", "a byte too large"],
)
async def test_memory_stays_flat_over_a_hundred_bad_messages_of_a_mebibyte(
    servers: Servers, capability: str, tmp_path: Path, body: bytes
) -> None:
    async with (
        AmqpBroker(servers.amqp_url, name="looker") as broker,
        agent_process(servers, capability, tmp_path) as agent,
    ):
        await _flood(servers.amqp_url, broker, capability, [body] * 2 * BATCH)
        before = agent.memory_info().rss

        await _flood(servers.amqp_url, broker, capability, [body] * 4 * BATCH)

        after = agent.memory_info().rss
        answer = await blocking(foreign.ask, servers.amqp_url, capability, hostile.GOOD)
        await remove_queues(broker, [capability])
        assert answer.status == "completed"
        assert after - before < 30 * MIB
