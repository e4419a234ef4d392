"""Results in parts over connections to a real broker that are cut."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from chaos.faults.proxy import FaultProxy, fault_proxy
from coditect.client.client import Client
from coditect.settings.settings import Settings
from tests.integration.agent.fleet import Fleet

pytestmark = pytest.mark.servers

CAPABILITY = "work.parts"
CUT_EVERY = 250


@pytest.fixture
async def proxy(fleet: Fleet) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(fleet.servers.amqp_url) as running:
        yield running


def told(part: str) -> tuple[int, int]:
    """The process of a part, and its number."""
    process, number = part.split()
    return int(process), int(number)


@pytest.mark.parametrize("side", ["reader", "agent"])
async def test_cut_connections_lose_and_double_no_part(fleet: Fleet, proxy: FaultProxy, side: str) -> None:
    through = {"CODITECT_AMQP_URL": proxy.url} if side == "agent" else {}
    agent = await fleet.start(**through)
    amqp_url = proxy.url if side == "reader" else fleet.servers.amqp_url
    async with Client.connecting(Settings(amqp_url=amqp_url, redis_url=fleet.servers.redis_url)) as client:
        handle = await client.submit(CAPABILITY, 1_500, stream=True)
        got, cuts = [], 0
        async for part in handle.stream(str, timeout="60s"):
            got.append(told(part))
            if len(got) % CUT_EVERY == 0:
                for pipe in proxy.pipes():
                    pipe.cut()
                    cuts += 1

    assert cuts >= 5
    assert got == [(agent.pid, number) for number in range(1_500)]
