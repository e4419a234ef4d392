"""The network between a process and the broker fails in every way that a proxy can make it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random

import pytest

from chaos.faults.proxy import FaultProxy, Pipe
from coditect.aio.network import BOTH, Way
from coditect.broker.rabbitmq import AmqpBroker
from coditect.model.message import Message
from tests.faults.load import Load
from tests.support import eventually, patient

pytestmark = pytest.mark.servers
PUBLISHES, CONSUMES = b"publishes", b"consumes"
NOTICED_SECONDS = 6.0
"""Promised are 3; the rest is for a slow machine."""
BUSY_SECONDS = 4.0
CUTS: dict[str, Callable[[Pipe], None]] = {
    "mid-frame to the broker": lambda pipe: pipe.cut_after(Way.TO_SERVER, 777),
    "mid-frame to the client": lambda pipe: pipe.cut_after(Way.TO_CLIENT, 5),
    "reset": Pipe.cut,
    "end right behind a frame": lambda pipe: pipe.finish_with_next(Way.TO_CLIENT),
}
every_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)


@pytest.fixture
async def broker(proxy: FaultProxy) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(proxy.url, name="faulty", watch_seconds=0.5) as connected:
        yield connected


def publish(broker: AmqpBroker, queue: str, name: str) -> asyncio.Future[None]:
    message = Message(b"x" * 400, message_id=name)
    return asyncio.ensure_future(broker.publish(message, exchange="", routing_key=queue))


async def ready(observer: AmqpBroker, queue: str) -> int:
    stats = await observer.stats(queue)
    assert stats is not None
    return stats.messages


async def names(observer: AmqpBroker, queue: str) -> list[str | None]:
    found = []
    while (delivery := await observer.get(queue)) is not None:
        found.append(delivery.message.message_id)
    await observer.release()
    return found


async def test_publish_whose_confirm_was_lost_is_repeated_under_its_id(
    broker: AmqpBroker, proxy: FaultProxy, observer: AmqpBroker, queue: str
) -> None:
    [pipe] = proxy.pipes(PUBLISHES)
    await publish(broker, queue, "first")
    pipe.swallow(Way.TO_CLIENT)
    publishing = publish(broker, queue, "taken")
    await eventually(lambda: _holds(observer, queue, 2))
    unconfirmed = not publishing.done()

    pipe.cut()
    await publishing

    assert unconfirmed
    assert await names(observer, queue) == ["first", "taken", "taken"]


async def _holds(observer: AmqpBroker, queue: str, messages: int) -> bool:
    return await ready(observer, queue) == messages


async def test_publish_that_never_reached_the_broker_is_sent_again(
    broker: AmqpBroker, proxy: FaultProxy, observer: AmqpBroker, queue: str
) -> None:
    [pipe] = proxy.pipes(PUBLISHES)
    await publish(broker, queue, "first")
    pipe.swallow(Way.TO_SERVER)
    publishing = publish(broker, queue, "lost")
    await eventually(lambda: pipe.is_for(b"lost"))

    pipe.cut()
    await publishing

    assert await names(observer, queue) == ["first", "lost"]


@every_cut
async def test_publishes_under_way_arrive_whatever_cuts_the_connection(
    broker: AmqpBroker, proxy: FaultProxy, observer: AmqpBroker, queue: str, cut: Callable[[Pipe], None]
) -> None:
    [pipe] = proxy.pipes(PUBLISHES)
    await publish(broker, queue, "first")
    cut(pipe)

    await asyncio.gather(*(publish(broker, queue, f"m-{number}") for number in range(100)))

    assert set(await names(observer, queue)) >= {f"m-{number}" for number in range(100)}
    await eventually(lambda: pipe not in proxy.pipes())


@every_cut
async def test_consumer_is_back_whatever_cuts_the_connection(
    broker: AmqpBroker, proxy: FaultProxy, observer: AmqpBroker, queue: str, cut: Callable[[Pipe], None]
) -> None:
    load = Load(observer, queue)
    await broker.consume(queue, load.take, prefetch=10)
    [pipe] = proxy.pipes(CONSUMES)
    cut(pipe)

    async with load.publishing(in_flight=10):
        await eventually(lambda: len(load.confirmed) >= 500)
    await eventually(lambda: not load.lost)

    assert pipe not in proxy.pipes()
    await eventually(lambda: broker.connected)


@pytest.mark.parametrize(
    "break_it", [lambda pipe: pipe.swallow(*BOTH), Pipe.half_open], ids=["black hole", "half-open"]
)
async def test_silent_connection_is_noticed_and_replaced(
    broker: AmqpBroker, proxy: FaultProxy, observer: AmqpBroker, queue: str, break_it: Callable[[Pipe], None]
) -> None:
    lost: list[bool] = []
    seen: list[str | None] = []
    await broker.consume(
        queue, lambda one: seen.append(one.message.message_id), prefetch=10, on_lost=lambda: lost.append(True)
    )
    await publish(broker, queue, "first")
    await eventually(lambda: seen == ["first"])
    clock = asyncio.get_running_loop().time
    started = clock()
    for pipe in proxy.pipes():
        break_it(pipe)

    await publish(broker, queue, "second")
    await eventually(lambda: lost)
    assert clock() - started < patient(NOTICED_SECONDS)
    await eventually(lambda: "second" in seen)  # what the broker gave to the dead connection comes back later
    assert lost == [True]


async def test_slow_and_trembling_network_loses_and_doubles_nothing(
    broker: AmqpBroker, proxy: FaultProxy, queue: str
) -> None:
    proxy.path.slow(partial(Random(0).uniform, 0.02, 0.05))
    load = Load(broker, queue)
    await broker.consume(queue, load.take, prefetch=50)

    async with load.publishing(in_flight=50):
        await eventually(lambda: len(load.confirmed) >= 500)
    await eventually(lambda: not load.lost)

    assert (load.failed, load.doubled) == ([], 0)
    assert broker.connected


async def test_broker_whose_connections_are_black_holes_is_left_without_a_trace(
    proxy: FaultProxy, observer: AmqpBroker, queue: str
) -> None:
    before = asyncio.all_tasks()
    clock = asyncio.get_running_loop().time
    async with AmqpBroker(proxy.url, name="leaving") as leaving:
        for group in ("p0", "p1", "p2"):
            await leaving.consume(queue, lambda _: None, prefetch=1, group=group)
        for pipe in proxy.pipes():
            pipe.swallow(*BOTH)
        started = clock()

    left_after = clock() - started
    for pipe in proxy.pipes():
        pipe.cut()
    await eventually(lambda: not [one for one in asyncio.all_tasks() - before if "aiormq" in repr(one)])
    print(f"left after {left_after:.1f} s")
    assert left_after < patient(10)


@pytest.mark.parametrize("way", [(Way.TO_CLIENT,), (Way.TO_SERVER,), BOTH], ids=["deaf", "mute", "both"])
async def test_process_that_is_cut_off_knows_it_although_no_new_connection_gets_through(
    broker: AmqpBroker, proxy: FaultProxy, way: tuple[Way, ...]
) -> None:
    await eventually(lambda: broker.connected and broker.answering)
    proxy.path.cut_off(*way)

    await eventually(lambda: not broker.answering, seconds=patient(NOTICED_SECONDS))

    assert not broker.connected


async def test_event_loop_that_is_busy_for_seconds_keeps_its_connections(
    broker: AmqpBroker, proxy: FaultProxy, queue: str
) -> None:
    lost: list[bool] = []
    await broker.consume(queue, lambda one: one.ack(), prefetch=10, on_lost=lambda: lost.append(True))
    before = proxy.pipes()

    for _ in range(2):
        time.sleep(BUSY_SECONDS)  # noqa: ASYNC251 - the fault itself
        await publish(broker, queue, "meanwhile")
        await asyncio.sleep(1.5)  # for whoever would take it for dead

    assert (lost, proxy.pipes(), broker.answering) == ([], before, True)
