"""A quorum queue stops answering: what is published elsewhere goes on, whatever lies before the silent one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import pytest

from coditect import Agent
from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq.consuming import QUEUE_ANSWER_SECONDS
from coditect.broker.rabbitmq.publishing import STUCK_SECONDS
from coditect.broker.topology import Binding, Queue, QueueType, Topology, base_topology, capability_queues
from coditect.errors import BrokerUnavailable, CoditectError, PublishUnconfirmed
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire import routing
from tests.faults.node import Node
from tests.fleet import running
from tests.servers import Servers
from tests.support import eventually, patient

pytestmark = pytest.mark.servers
AROUND_SECONDS = 12.0
"""Three to notice it, one of grace, and a slow machine."""
HELD_UP_SECONDS = 8.0
"""What shares a channel with a queue that does not answer a cancel."""
MORE_QUESTIONS = 8
"""Of a quarter of a minute each."""


@pytest.fixture
async def capabilities(observer: AmqpBroker) -> AsyncIterator[tuple[str, str]]:
    """Two, the first of which will fall silent."""
    names = (f"silent{uuid4().hex[:8]}", f"other{uuid4().hex[:8]}")
    made = [capability_queues(name) for name in names]
    await observer.declare(base_topology() + made[0] + made[1])
    yield names
    for queue in (one for topology in made for one in topology.queues):
        await observer.delete_queue(queue.name)


@pytest.fixture
async def broker(node: Node) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(node.url, name="patient", window=500) as connected:
        yield connected


def submit(broker: AmqpBroker, capability: str, body: bytes, *, timeout_seconds: float = 150.0) -> asyncio.Future[None]:
    key = routing.task_key(capability, Priority.P1)
    published = broker.publish(Message(body), exchange=routing.SUBMIT, routing_key=key, timeout_seconds=timeout_seconds)
    return asyncio.ensure_future(published)


async def answer(broker: AmqpBroker, queue: str) -> Delivery | None:
    """The queue's answer, however long a busy machine takes to end its silence: who asks again waits for the same."""
    for _ in range(MORE_QUESTIONS):
        with suppress(BrokerUnavailable):
            return await broker.get(queue)
    return await broker.get(queue)


@pytest.mark.parametrize("known", [False, True], ids=["new to the channel", "known to the channel"])
async def test_silent_queue_stops_no_publish_to_another(
    node: Node, broker: AmqpBroker, capabilities: tuple[str, str], known: bool
) -> None:
    silent, other = capabilities
    if known:
        await submit(broker, silent, b"before")

    async with node.silent(routing.task_queue(silent, Priority.P1)):
        stuck = [submit(broker, silent, b"%d" % number) for number in range(10)]
        late = submit(broker, silent, b"late", timeout_seconds=1.0)
        async with asyncio.timeout(patient(AROUND_SECONDS)):
            await asyncio.gather(*(submit(broker, other, b"%d" % number) for number in range(20)))
            await broker.publish(Message(b""), exchange=routing.DEAD, routing_key=f"{other}.p1")
            with pytest.raises(PublishUnconfirmed):
                await late
        unconfirmed = [one for one in stuck if not one.done()]

    await asyncio.gather(*stuck)
    assert unconfirmed == stuck


async def test_hundreds_before_a_silent_queue_stop_no_publish_to_another(
    node: Node, broker: AmqpBroker, capabilities: tuple[str, str]
) -> None:
    """More than RabbitMQ takes from a connection while one of its channels waits for a queue."""
    silent, other = capabilities
    await submit(broker, silent, b"before")

    async with node.silent(routing.task_queue(silent, Priority.P1)):
        stuck = [submit(broker, silent, b"%d" % number) for number in range(490)]
        async with asyncio.timeout(patient(2 * AROUND_SECONDS)):
            await submit(broker, other, b"mine")
        unconfirmed = [one for one in stuck if not one.done()]

    await asyncio.gather(*stuck)
    assert unconfirmed == stuck


@pytest.fixture
async def queues(observer: AmqpBroker) -> AsyncIterator[tuple[str, str]]:
    """Two quorum queues: the first, which will fall silent, gets events, and the other control requests."""
    names = (f"silent-{uuid4().hex[:8]}", f"other-{uuid4().hex[:8]}")
    bindings = tuple(
        Binding(exchange, name, name) for exchange, name in zip((routing.EVENTS, routing.CONTROL), names, strict=True)
    )
    own = Topology(queues=tuple(Queue(name, QueueType.QUORUM) for name in names), bindings=bindings)
    await observer.declare(base_topology() + own)
    yield names
    for name in names:
        await observer.delete_queue(name)


async def test_hundreds_of_events_for_a_silent_listener_hold_up_no_control_request(
    node: Node, broker: AmqpBroker, queues: tuple[str, str]
) -> None:
    """More than RabbitMQ takes from a connection while one of its channels waits for a queue."""
    silent, other = queues

    async with node.silent(silent):
        for _ in range(3):
            events = (
                broker.publish(Message(b""), exchange=routing.EVENTS, routing_key=silent, timeout_seconds=0.3)
                for _ in range(300)
            )
            dropped = await asyncio.gather(*events, return_exceptions=True)
            assert all(isinstance(one, CoditectError) for one in dropped)
        async with asyncio.timeout(patient(2 * STUCK_SECONDS)):  # a connection's first request opens a channel, too
            await broker.publish(Message(b""), exchange=routing.CONTROL, routing_key=other)


async def test_silent_queue_holds_up_no_other_consumer_after_a_reconnect(
    node: Node, broker: AmqpBroker, queues: tuple[str, str]
) -> None:
    silent, other = [
        await broker.consume(queue, lambda delivery: delivery.ack(), prefetch=1, group=queue) for queue in queues
    ]

    async with node.silent(queues[0]):
        broker.drop()
        await eventually(lambda: not broker.connected)
        await eventually(lambda: broker.connected and other.active, seconds=patient(2 * QUEUE_ANSWER_SECONDS))
        assert not silent.active

    await eventually(lambda: silent.active, seconds=patient(2 * AROUND_SECONDS))


async def test_silent_queue_holds_up_no_question_to_another(
    node: Node, broker: AmqpBroker, capabilities: tuple[str, str]
) -> None:
    silent, other = (routing.task_queue(one, Priority.P1) for one in capabilities)
    await submit(broker, capabilities[0], b"held")
    await submit(broker, capabilities[1], b"free")

    async with node.silent(silent):
        stuck = asyncio.ensure_future(answer(broker, silent))
        await asyncio.sleep(0)  # it is asked first
        async with asyncio.timeout(patient(AROUND_SECONDS)):
            free = await answer(broker, other)
        assert free is not None and free.message.body == b"free"
        assert not stuck.done()

    held = await stuck
    assert held is not None and held.message.body == b"held"
    assert not free.lost


async def test_given_up_question_loses_nothing_that_came_over_its_channel(
    node: Node, broker: AmqpBroker, capabilities: tuple[str, str]
) -> None:
    silent, other = (routing.task_queue(one, Priority.P1) for one in capabilities)
    await submit(broker, capabilities[0], b"held")
    await submit(broker, capabilities[1], b"free")
    free = await broker.get(other)
    assert free is not None

    async with node.silent(silent):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(broker.get(silent), 0.2)
        late = asyncio.ensure_future(answer(broker, silent))
        await asyncio.sleep(0)

    held = await late
    assert held is not None and not held.redelivered, "it was asked once, and who asks last has the answer"
    assert not free.lost


async def test_answer_that_nobody_waits_for_goes_back(
    node: Node, broker: AmqpBroker, observer: AmqpBroker, capabilities: tuple[str, str]
) -> None:
    silent = routing.task_queue(capabilities[0], Priority.P1)
    await submit(broker, capabilities[0], b"held")

    async with node.silent(silent):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(broker.get(silent), 0.2)

    back: list[Delivery] = []

    async def given_back() -> bool:
        back.extend([held] if (held := await answer(observer, silent)) else [])
        return bool(back)

    await eventually(given_back, seconds=patient(AROUND_SECONDS))
    assert back[0].redelivered, "the answer came, and was given back"


async def test_silent_queue_stops_no_delivery_of_another_capability(node: Node, servers: Servers) -> None:
    """With its one slot for normal tasks busy, the agent cancels the consumers of both queues."""
    silent, other = f"silent.{uuid4().hex[:8]}", f"other.{uuid4().hex[:8]}"
    agent, runs = Agent("two", slots=2), list[int]()

    @agent.capability(other)
    async def work(number: int) -> None:
        runs.append(number)
        await asyncio.sleep(1)

    agent.capability(silent)(work)
    own = replace(servers, amqp_url=node.url)
    async with running(agent, own) as fleet, node.silent(routing.task_queue(silent, Priority.P1)):
        async with asyncio.timeout(patient(4 + HELD_UP_SECONDS / 2)):
            handles = [await fleet.client.submit(other, number) for number in range(4)]
            await asyncio.gather(*(handle.result(timeout="1m") for handle in handles))

    assert sorted(runs) == [0, 1, 2, 3], "no channel was given up with what came over it"
