"""Exchanges, bindings and queues are deleted under a working fleet: every accepted task is answered all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import aiormq
import pytest

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import reply_queue
from coditect.client.client import Client
from coditect.errors import CoditectError, NotFound, TaskFailed, UnknownCapability
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.model.retry import Retry
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.wire import routing
from tests.faults.node import Node
from tests.support import eventually

pytestmark = pytest.mark.servers
CAPABILITY = "lost.work"
WATCH_SECONDS = 0.5
ANSWERED_SECONDS = 30.0
TASK_QUEUE = routing.task_queue(CAPABILITY, Priority.P1)


@dataclass
class Load:
    """Tasks one after the other, some of which fail, and how each of them ended."""

    client: Client
    answered: int = 0
    unknown: list[CoditectError] = field(default_factory=list)
    refused: int = 0
    stopping: bool = False

    async def run(self) -> None:
        while not self.stopping:
            try:
                handle = await self.client.submit(CAPABILITY, {"fail": self.answered % 7 == 0})
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


async def _delete(node: Node, what: str) -> None:
    kind, _, name = what.partition(" ")
    async with await aiormq.connect(node.url) as connection:
        channel = await connection.channel()
        if kind == "exchange":
            await channel.exchange_delete(name)
        elif kind == "queue":
            await channel.queue_delete(name)
        else:
            await channel.queue_unbind(TASK_QUEUE, name, f"{CAPABILITY}.p1")


@pytest.mark.parametrize(
    "what",
    [
        *(f"exchange {one}" for one in (routing.SUBMIT, routing.REPLIES, routing.DEAD)),
        f"binding {routing.SUBMIT}",
        f"queue {routing.dead_queue(CAPABILITY)}",
    ],
)
async def test_every_accepted_task_is_answered_although_somebody_deletes(node: Node, load: Load, what: str) -> None:
    async with asyncio.TaskGroup() as working:
        for _ in range(20):
            working.create_task(load.run())
        await eventually(lambda: load.answered > 100, seconds=ANSWERED_SECONDS)
        await _delete(node, what)
        before = load.answered
        await eventually(lambda: load.answered > before + 300, seconds=ANSWERED_SECONDS)
        load.stopping = True

    assert (load.unknown, load.refused) == ([], 0)


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
