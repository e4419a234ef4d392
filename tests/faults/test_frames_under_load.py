"""Trap 12 of docs/adr/0009-direct-frames.md: the connections of direct frames are lost again and again, under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random

import pytest

from chaos.faults.proxy import FaultProxy
from coditect.aio.network import Way
from coditect.broker.rabbitmq import AmqpBroker
from coditect.errors import NotFound
from coditect.model.message import Message
from tests.faults.load import Load
from tests.faults.node import Node
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.endurance]
IN_FLIGHT = 200
SIZES = (200, 0, 1_000, 200, 20_000, 200, 200, 300_000)
KILLS, CUTS = 3, 48
ENDURED_KILLS = 50


@dataclass
class Stage:
    """Who can hurt whom."""

    node: Node
    proxy: FaultProxy
    broker: AmqpBroker
    random: Random

    async def kill(self) -> None:
        """kill -9 of the broker, and a start on its data."""
        await self.node.kill()
        await self.node.start()

    async def reset(self) -> None:
        for pipe in self.proxy.pipes():
            pipe.cut()

    async def reset_one(self) -> None:
        self.random.choice(self.proxy.pipes()).cut()

    async def tear(self) -> None:
        """In the middle of a frame, most likely."""
        for pipe in self.proxy.pipes():
            pipe.cut_after(self.random.choice([Way.TO_CLIENT, Way.TO_SERVER]), self.random.randrange(50_000))

    async def finish(self) -> None:
        for pipe in self.proxy.pipes():
            pipe.finish_with_next(Way.TO_CLIENT)

    async def close_consuming_channel(self) -> None:
        """406: the broker knows no such delivery. The acks under way must not end the connection, too."""
        channel = self.broker._groups[""]._open
        if channel is not None:
            await channel.channel.basic_ack(2**62)

    async def close_publishing_channel(self) -> None:
        with pytest.raises(NotFound):
            await self.broker.publish(Message(b""), exchange="nowhere", routing_key="q")

    async def close_connections(self) -> None:
        """What an operator does."""
        every = "Pid <- rabbit_networking:connections()"
        await self.node.evaluate(f'[rabbit_networking:close_connection(Pid, "test") || {every}].')

    @property
    def cuts(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.reset,
            self.tear,
            self.close_consuming_channel,
            self.finish,
            self.close_publishing_channel,
            self.reset_one,
            self.tear,
            self.close_consuming_channel,
        ]


@pytest.fixture
async def stage(node: Node, proxy: FaultProxy) -> AsyncIterator[Stage]:
    async with AmqpBroker(proxy.url, name="under load", watch_seconds=0.5) as broker:
        yield Stage(node, proxy, broker, Random(7))


async def endure(stage: Stage, queue: str, faults: list[Callable[[], Awaitable[None]]]) -> Load:
    """Every fault hits a load that has gone on since the last one, and nothing that was confirmed is lost."""
    await stage.node.write_to_disk()
    load = Load(stage.broker, queue, timeout_seconds=90.0, sizes=SIZES)
    await stage.broker.consume(queue, load.take, prefetch=200)

    def goes_on(confirmed: int, taken: int) -> bool:
        return len(load.confirmed) >= confirmed + IN_FLIGHT and load.taken.total() >= taken + IN_FLIGHT

    async with load.publishing(in_flight=IN_FLIGHT):
        for fault in faults:
            confirmed, taken = len(load.confirmed), load.taken.total()
            await eventually(lambda: goes_on(confirmed, taken), seconds=100)  # noqa: B023 - awaited in this turn
            await fault()
        confirmed, taken = len(load.confirmed), load.taken.total()
        await eventually(lambda: goes_on(confirmed, taken), seconds=100)
    await eventually(lambda: not load.lost)
    assert load.failed == []
    return load


def report(load: Load, faults: int, seconds: float) -> str:
    return (
        f"{faults} faults in {seconds:.0f} s: {len(load.confirmed)} confirmed, {len(load.lost)} lost, "
        f"{load.doubled} doubled, {len(load.failed)} failed"
    )


@pytest.mark.proof
@pytest.mark.timeout(240)
async def test_trap_12_nothing_confirmed_is_lost_in_fifty_losses_of_the_connection_or_the_broker(
    stage: Stage, queue: str
) -> None:
    started = asyncio.get_running_loop().time()
    faults = list(islice(cycle(stage.cuts), CUTS))
    for number in range(KILLS):
        faults.insert((number + 1) * CUTS // (KILLS + 1), stage.kill)
    faults.append(stage.close_connections)

    load = await endure(stage, queue, faults)

    print(report(load, len(faults), asyncio.get_running_loop().time() - started))
    assert load.lost == set()
    assert stage.broker.connected


@pytest.mark.endurance
@pytest.mark.timeout(1_800)
async def test_nothing_confirmed_is_lost_in_fifty_kills_of_the_broker(stage: Stage, queue: str) -> None:
    started = asyncio.get_running_loop().time()

    load = await endure(stage, queue, [stage.kill] * ENDURED_KILLS)

    print(report(load, ENDURED_KILLS, asyncio.get_running_loop().time() - started))
    assert load.lost == set()
    assert stage.broker.connected
