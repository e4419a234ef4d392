"""Exchanges, bindings and queues are deleted under a working fleet: every accepted task is answered all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import aiormq
import pytest

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import (
    agent_queues,
    base_topology,
    capability_queues,
    control_plane,
    event_queue,
    notices,
    reply_queue,
    shard_queues,
    trigger_queue,
    webhook_queue,
)
from coditect.client.client import Client
from coditect.errors import CoditectError, NotFound, TaskFailed, UnknownCapability, Unroutable
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.retry import Retry
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.wire import routing
from dispatcher.program import running_dispatcher
from tests.faults.node import Node
from tests.fleet import remove_queues
from tests.support import eventually, patient

pytestmark = pytest.mark.servers
CAPABILITY = "lost.work"
WATCH_SECONDS = 0.5
ANSWERED_SECONDS = 30.0
AT_ONCE = 20
"""Tasks under way at any time; each of them has to be answered in the end."""
MANY = 100
"""More retries than RabbitMQ keeps in hand of one queue's dead letters."""
TASK_QUEUE = routing.task_queue(CAPABILITY, Priority.P1)


@dataclass
class Load:
    """Tasks one after the other, some of which fail, and how each of them ended."""

    client: Client
    durable: bool = False
    answered: int = 0
    unknown: list[CoditectError] = field(default_factory=list)
    refused: int = 0
    stopping: bool = False

    async def run(self) -> None:
        while not self.stopping:
            try:
                handle = await self.client.submit(CAPABILITY, {"fail": self.answered % 7 == 0}, durable=self.durable)
            except UnknownCapability as error:
                self.unknown.append(error)
            except CoditectError:
                self.refused += 1
            else:
                await self._answered(handle.result(timeout=ANSWERED_SECONDS))

    async def _answered(self, result: Awaitable[object]) -> None:
        with suppress(TaskFailed):
            await result
        self.answered += 1


@pytest.fixture
async def load(node: Node) -> AsyncIterator[Load]:
    agent = Agent("finder", slots=8)

    @agent.capability(CAPABILITY, retry=Retry(max_attempts=2, first="100ms"))
    async def work(task: dict[str, bool]) -> str:
        if task["fail"]:
            raise ValueError("as told")
        return "done"

    async with AsyncExitStack() as stack:
        brokers = [AmqpBroker(node.url, name=name, watch_seconds=WATCH_SECONDS) for name in ("agent", "client")]
        own, other = [await stack.enter_async_context(one) for one in brokers]
        settings, registry = Settings(drain_seconds=2.0), MemoryRegistry()
        opened = running_agent(
            agent, broker=own, registry=registry, settings=settings, clock=SystemClock(), drain=asyncio.Event()
        )
        await stack.enter_async_context(opened)
        client = await stack.enter_async_context(Client(other, registry))
        yield Load(client)


@pytest.fixture
async def durable(node: Node, load: Load) -> AsyncIterator[Load]:
    """The same with a control plane, which keeps the tasks."""
    broker, registry = AmqpBroker(node.url, name="dispatcher", watch_seconds=WATCH_SECONDS), MemoryRegistry()
    async with broker, running_dispatcher(broker=broker, registry=registry, clock=SystemClock()):
        yield Load(load.client, durable=True)


async def _delete(node: Node, what: str, *, capability: str = CAPABILITY) -> None:
    kind, _, name = what.partition(" ")
    async with await aiormq.connect(node.url) as connection:
        channel = await connection.channel()
        if kind == "exchange":
            await channel.exchange_delete(name)
        elif kind == "queue":
            await channel.queue_delete(name)
        elif name == routing.retry_exchange(100):
            await channel.queue_unbind(routing.retry_queue(100), name)
        else:
            queue, key = routing.task_queue(capability, Priority.P1), routing.task_key(capability, Priority.P1)
            await channel.queue_unbind(queue, name, key)


@pytest.mark.parametrize(
    "what",
    [
        *(f"exchange {one}" for one in (routing.SUBMIT, routing.REPLIES, routing.DEAD, routing.retry_exchange(100))),
        f"binding {routing.SUBMIT}",
        f"binding {routing.retry_exchange(100)}",
        f"queue {routing.dead_queue(CAPABILITY)}",
    ],
)
async def test_every_accepted_task_is_answered_although_somebody_deletes(node: Node, load: Load, what: str) -> None:
    await _answers_go_on(node, load, what)


@pytest.mark.parametrize("what", [f"exchange {one}" for one in (routing.RESULTS, routing.CONTROL, routing.EVENTS)])
async def test_every_durable_task_is_answered_although_somebody_deletes(node: Node, durable: Load, what: str) -> None:
    await _answers_go_on(node, durable, what)


async def _answers_go_on(node: Node, load: Load, what: str) -> None:
    async with asyncio.TaskGroup() as working:
        for _ in range(AT_ONCE):
            working.create_task(load.run())
        await eventually(lambda: load.answered > 3 * AT_ONCE, seconds=ANSWERED_SECONDS)
        await _delete(node, what)
        before = load.answered
        await eventually(lambda: load.answered > before + 5 * AT_ONCE, seconds=ANSWERED_SECONDS)
        load.stopping = True

    assert (load.unknown, load.refused) == ([], 0)


@pytest.mark.parametrize("what", [f"exchange {routing.SUBMIT}", f"exchange {routing.REPLIES}"])
async def test_client_that_opens_after_somebody_deleted_is_answered(node: Node, load: Load, what: str) -> None:
    await _delete(node, what)

    async with AmqpBroker(node.url, name="new") as broker, Client(broker, MemoryRegistry()) as client:
        new = Load(client)
        async with asyncio.TaskGroup() as working:
            working.create_task(new.run())
            await eventually(lambda: new.answered > 20, seconds=ANSWERED_SECONDS)
            new.stopping = True

    assert (new.unknown, new.refused) == ([], 0)


async def test_client_is_told_that_nothing_leads_to_the_queue_while_nobody_restores_its_binding(node: Node) -> None:
    alone = "left.behind"
    async with AmqpBroker(node.url, name="gone") as gone:
        await gone.declare(base_topology() + capability_queues(alone))
    await _delete(node, f"binding {routing.SUBMIT}", capability=alone)

    async with AmqpBroker(node.url, name="new") as broker, Client(broker, MemoryRegistry()) as client:
        with pytest.raises(Unroutable, match="The capability is there, but nothing leads to its queue") as told:
            await client.submit(alone, None)

        assert told.value.facts["fix"] == f"coditect topology apply --capability {alone}"
        await broker.declare(capability_queues(alone))
        await client.submit(alone, None)
        await remove_queues(broker, [alone])


async def test_every_deleted_binding_is_made_again_within_five_seconds(node: Node) -> None:
    """Except those of the retry-delay queues, which `load` covers: their publisher makes the binding again at once."""
    agent, name = AgentId("bound-1"), "bound.work"
    wanted = base_topology() + capability_queues(name) + agent_queues(agent, slots=4) + reply_queue("reply.bound")
    wanted += control_plane() + shard_queues(7) + notices() + event_queue("events.bound", ("task.*",))
    wanted += trigger_queue("trigger.bound", "order.*") + webhook_queue("webhook.bound", ("#",))
    delayed = {queue.name for queue in wanted.queues if queue.name.startswith("retry.after.")}
    bindings = [one for one in wanted.bindings if one.queue not in delayed]

    async def bound() -> int:
        return int(await node.evaluate('length(rabbit_binding:list(<<"/">>)).'))

    async def unbind_all() -> None:
        async with await aiormq.connect(node.url) as connection:
            channel = await connection.channel()
            for binding in bindings:
                await channel.queue_unbind(binding.queue, binding.exchange, binding.key)

    async with AmqpBroker(node.url, name="owner") as owner:
        await owner.declare(wanted)
        for queue in wanted.queues:
            if not queue.name.startswith(("dead.", "retry.", "unrouted")):
                await owner.consume(queue.name, lambda delivery: delivery.ack(), prefetch=1)
        before = await bound()
        await unbind_all()
        assert await bound() < before

        await eventually(lambda: _is(bound, before), seconds=patient(5.0))

        for queue in wanted.queues:
            if queue.name not in delayed | {routing.UNROUTED_QUEUE}:
                await owner.delete_queue(queue.name)


async def _is(count: Callable[[], Awaitable[int]], expected: int) -> bool:
    return await count() == expected


async def _messages(broker: AmqpBroker, queue: str) -> int:
    stats = await broker.stats(queue)
    assert stats is not None
    return stats.messages


@pytest.mark.endurance
@pytest.mark.timeout(500)
async def test_retries_that_come_out_while_their_way_back_is_missing_come_when_the_broker_looks_again(
    node: Node,
) -> None:
    """After three minutes; more than 32 of them hold up all retries of the same delay. None is lost or unrouted."""
    arrived: list[Delivery] = []
    key, delayed = routing.task_key(CAPABILITY, Priority.P1), routing.retry_queue(1_000)
    async with AmqpBroker(node.url, name="alone", watch_seconds=600) as broker:

        async def retry() -> None:
            await broker.publish(Message(b"1"), exchange=routing.retry_exchange(1_000), routing_key=key)

        async def came_out() -> bool:
            return await _messages(broker, delayed) == 0

        await broker.declare(base_topology() + capability_queues(CAPABILITY))
        await broker.consume(TASK_QUEUE, arrived.append, prefetch=2 * MANY)
        before = await _messages(broker, routing.UNROUTED_QUEUE)
        await asyncio.gather(*(retry() for _ in range(MANY)))
        await _delete(node, f"exchange {routing.RETRY_BACK}")
        await eventually(came_out)
        await broker.declare(base_topology() + capability_queues(CAPABILITY))
        restored = asyncio.get_running_loop().time()
        await retry()

        await eventually(lambda: len(arrived) == MANY + 1, seconds=400)

        assert asyncio.get_running_loop().time() - restored > 60
        assert await _messages(broker, routing.UNROUTED_QUEUE) == before


@pytest.mark.parametrize("what", [f"exchange {routing.TASKS}", f"binding {routing.TASKS}"])
async def test_door_of_strangers_is_open_again_without_anybody_of_ours_going_through_it(
    node: Node, load: Load, what: str
) -> None:
    await _delete(node, what)

    async with AmqpBroker(node.url, name="stranger") as stranger:

        async def answered() -> bool:
            """What comes too early lies in `unrouted`."""
            message = Message(b'{"fail": false}', reply_to="reply.stranger")
            with suppress(NotFound):
                await stranger.publish(message, exchange=routing.TASKS, routing_key=f"{CAPABILITY}.p1")
            return await stranger.get("reply.stranger") is not None

        await stranger.declare(reply_queue("reply.stranger"))
        await eventually(answered, seconds=ANSWERED_SECONDS)
