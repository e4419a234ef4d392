"""Results in parts on real servers: cut connections, killed agents, and a reader that stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coditect.client.client import Client
from coditect.errors import StreamRestarted, TaskCanceled
from coditect.messaging.parts import AHEAD
from coditect.settings.settings import Settings
from dispatcher.chaos.faults.proxy import FaultProxy, fault_proxy
from tests.integration.agent.fleet import Fleet, client_of
from tests.support import WIRES, eventually

pytestmark = pytest.mark.servers

CAPABILITY = "work.parts"
PARTS = 10_000
CUT_EVERY = 500
MOST_GROWTH_BYTES = 8 * 1024 * 1024
"""What an agent may grow by over 10 MB of parts, of which its bound allows it 64 kB."""


@pytest.fixture
async def proxy(fleet: Fleet) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(fleet.servers.amqp_url) as running:
        yield running


def told(part: str) -> tuple[int, int]:
    """The process of a part, and its number."""
    process, number = part.split()
    return int(process), int(number)


def resident_bytes(process: int) -> int:
    pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("side", ["reader", "agent"])
async def test_cut_connections_lose_and_double_no_part(fleet: Fleet, proxy: FaultProxy, side: str, wire: str) -> None:
    through = {"CODITECT_AMQP_URL": proxy.url} if side == "agent" else {}
    agent = await fleet.start(CODITECT_WIRE=wire, **through)
    amqp_url = proxy.url if side == "reader" else fleet.servers.amqp_url
    async with Client.connecting(Settings(amqp_url=amqp_url, redis_url=fleet.servers.redis_url, wire=wire)) as client:
        handle = await client.submit(CAPABILITY, 3_000, stream=True)
        got, cuts = [], 0
        async for part in handle.stream(str, timeout="60s"):
            got.append(told(part))
            if len(got) % CUT_EVERY == 0:
                for pipe in proxy.pipes():
                    pipe.cut()
                    cuts += 1

    assert cuts >= 5
    assert got == [(agent.pid, number) for number in range(3_000)]


async def test_killed_agent_s_parts_begin_again_at_another(fleet: Fleet) -> None:
    agents = {one.pid: one for one in (await fleet.start(), await fleet.start())}
    async with client_of(fleet.servers) as client:
        handle = await client.submit(CAPABILITY, 2_000, stream=True)
        before = []
        with pytest.raises(StreamRestarted) as raised:
            async for part in handle.stream(str, timeout="60s"):
                before.append(told(part))
                if len(before) == 1_000:
                    agents[before[0][0]].kill()
        after = [told(part) async for part in handle.stream(str, timeout="60s")]

    killed = before[0][0]
    (heir,) = agents.keys() - {killed}
    assert before == [(killed, number) for number in range(len(before))]
    assert raised.value.facts["read"] == len(before)
    assert after == [(heir, number) for number in range(2_000)]


async def test_reader_that_stops_fills_neither_agent_nor_broker(fleet: Fleet) -> None:
    agent = await fleet.start()
    async with client_of(fleet.servers) as client:
        await client.request(CAPABILITY, 100)  # what an agent loads with its first task
        before = resident_bytes(agent.pid)
        handle = await client.submit(CAPABILITY, PARTS, stream=True)
        stream = handle.stream(str)
        got = [told(await anext(stream))]
        parts = handle._parts
        assert parts is not None
        await eventually(lambda: len(parts._held) == AHEAD - 1)
        assert await client.request("work.do", 500) == 500  # the agent works on meanwhile
        stats = await client._broker.stats(f"reply.{client.name}")

        assert stats is not None
        assert stats.messages == 0
        assert len(parts._held) == AHEAD - 1
        got += [told(part) async for part in stream]
        grown = resident_bytes(agent.pid) - before

    assert got == [(agent.pid, number) for number in range(PARTS)]
    assert grown < MOST_GROWTH_BYTES, f"{grown} bytes"


async def test_left_loop_closes_the_generator_of_the_agent(fleet: Fleet) -> None:
    await fleet.start()
    async with client_of(fleet.servers) as client:
        handle = await client.submit(CAPABILITY, PARTS, stream=True)
        async for part in handle.stream(str):
            if told(part)[1] == 100:
                break

        await eventually(lambda: fleet.noted("closed") == [str(handle.task_id)])
        with pytest.raises(TaskCanceled):
            await handle.result(timeout="20s")
