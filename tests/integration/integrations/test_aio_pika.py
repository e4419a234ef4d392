"""A client over a program's own aio-pika connection, beside a client with connections of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection
from yarl import URL

from chaos.faults.proxy import fault_proxy
from coditect import Agent, Client
from coditect.errors import SetupError, UnknownCapability
from coditect.integrations.aio_pika import _BorrowedConnection, broker_over
from tests.fleet import running
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers

MANY = 200
KINDS = {"robust": aio_pika.connect_robust, "plain": aio_pika.connect}
both = pytest.mark.parametrize("connect", KINDS.values(), ids=KINDS)

Connect = Callable[..., Awaitable[AbstractConnection]]


def doubler(capability: str, gate: asyncio.Event) -> Agent:
    agent = Agent("doubler", slots=4)

    @agent.capability(capability)
    async def double(number: int) -> int:
        await gate.wait()
        return 2 * number

    return agent


@asynccontextmanager
async def client_over(connection: AbstractConnection) -> AsyncIterator[Client]:
    async with broker_over(connection) as broker, Client(broker) as client:
        yield client


def channels(connection: AbstractConnection) -> set[int]:
    assert connection.transport is not None
    lower: Any = connection.transport.connection
    return {number for number, channel in lower.channels.items() if channel is not None}


@both
async def test_results_events_and_errors_come_over_the_program_s_connection_which_stays_as_it_was(
    servers: Servers, capability: str, connect: Connect
) -> None:
    (gate := asyncio.Event()).set()
    async with running(doubler(capability, gate), servers) as fleet, await connect(servers.amqp_url) as connection:
        channel = await connection.channel()
        own = await channel.declare_queue(exclusive=True)
        before = channels(connection)
        async with client_over(connection) as client:
            async with client.events("task.completed") as events:
                doubled = await client.request(capability, 21, timeout="60s")
                event = await anext(events)
            beside = await asyncio.gather(*(one.request(capability, 1) for one in (client, fleet.client) for _ in "ab"))
            with pytest.raises(UnknownCapability):
                await client.submit(f"{capability}s")
        after = channels(connection)
        await channel.default_exchange.publish(aio_pika.Message(b"mine"), routing_key=own.name)
        mine = await own.get(timeout=60)

    assert (doubled, event.data["capability"], beside) == (42, capability, [2, 2, 2, 2])
    assert (after, mine.body) == (before, b"mine")


@both
async def test_results_come_although_the_connection_was_cut_meanwhile(
    servers: Servers, capability: str, connect: Connect
) -> None:
    options = {"reconnect_interval": 0.05} if connect is aio_pika.connect_robust else {}
    gate = asyncio.Event()
    async with (
        running(doubler(capability, gate), servers),
        fault_proxy(servers.amqp_url) as proxy,
        await connect(proxy.url, **options) as connection,
        client_over(connection) as client,
    ):
        started = await client.submit(capability, 1)
        [pipe] = proxy.pipes()
        transport = connection.transport
        pipe.cut()
        # A robust connection may be back between two looks: on another transport.
        await eventually(lambda: not connection.connected.is_set() or connection.transport is not transport)
        gate.set()  # the reply comes while nobody consumes the reply queue
        if not options:
            await connection.connect()
        first = await started.result(timeout="60s")

        handles = []
        async for handle in client.submit_many(capability, range(MANY), concurrency=MANY // 4):
            handles.append(handle)
            if len(handles) == MANY // 2:
                proxy.pipes()[-1].cut()
                if not options:
                    await eventually(lambda: not connection.connected.is_set())
                    await connection.connect()
        doubled = [await handle.result(timeout="60s") for handle in handles]

    assert (first, doubled) == (2, [2 * number for number in range(MANY)])


async def test_connection_that_the_program_has_closed_is_refused(servers: Servers) -> None:
    connection = await aio_pika.connect_robust(servers.amqp_url)
    await connection.close()

    with pytest.raises(SetupError, match="has closed its connection"):
        async with broker_over(connection):
            pass


async def test_virtual_host_with_a_comma_is_one_host() -> None:
    connection = aio_pika.Connection(URL("amqp://guest:guest@localhost/a,b"))

    async def restore(_: Any) -> None: ...

    assert _BorrowedConnection(connection, "test", restore).address == "amqp://localhost/a,b"
