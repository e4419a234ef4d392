"""An agent at work in the test's own process, on real servers, with a client beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.agent.runtime import Runtime
from coditect.aio.clock import SystemClock
from coditect.broker.port import Broker
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import capability_queues
from coditect.client.client import Client
from coditect.registry.redis import RedisRegistry
from coditect.settings.settings import Settings
from tests.servers import Servers


@dataclass(frozen=True, slots=True)
class Running:
    """One running agent and what a test looks at it with."""

    runtime: Runtime
    client: Client
    broker: AmqpBroker
    """The client's connection; `get` on it is the test's own way to look into a queue."""
    registry: RedisRegistry
    agents_broker: AmqpBroker
    """The agent's own connection."""

    async def holds(self, queue: str, messages: int) -> bool:
        """Whether so many messages wait in the queue, in nobody's hand."""
        stats = await self.broker.stats(queue)
        return stats is not None and stats.messages == messages

    async def drained(self, queue: str) -> bool:
        """Whether everything that was in the queue is in somebody's hand."""
        return await self.holds(queue, 0)

    async def letters(self, queue: str) -> list[Letter]:
        """Everything that lies in the queue now, taken out of it."""
        return await taken(self.broker, queue)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that was taken out of a queue, whatever is in it."""

    body: bytes
    headers: dict[str, object]
    message_id: str | None
    correlation_id: str | None
    routing_key: str

    @property
    def reason(self) -> object:
        """Why an agent gave the task up."""
        return self.headers.get("x-coditect-reason")


async def taken(broker: Broker, queue: str) -> list[Letter]:
    """Everything that lies in the queue now, taken out of it; empty when there is no such queue."""
    if await broker.stats(queue) is None:
        return []
    letters = []
    while (delivery := await broker.get(queue)) is not None:
        message = delivery.message
        letters.append(
            Letter(
                message.body,
                dict(message.headers),
                message.message_id,
                message.correlation_id,
                delivery.routing_key,
            )
        )
        delivery.ack()
    await broker.release()
    return letters


@asynccontextmanager
async def running(agent: Agent, servers: Servers, *, settings: Settings | None = None) -> AsyncIterator[Running]:
    """The agent consumes until the block ends; then it drains, and the queues of its capabilities are removed.

    The registry's keys have a prefix of their own, so the agent sees no other; its capabilities must be
    named so that no other test has them.
    """
    chosen = settings or Settings(amqp_url=servers.amqp_url, redis_url=servers.redis_url, drain_seconds=5.0)
    prefix = f"test-{uuid4().hex}:"
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(AmqpBroker(chosen.amqp_url, name=f"{agent.name} client"))
        own = await stack.enter_async_context(AmqpBroker(chosen.amqp_url, name=agent.name))
        registry = await stack.enter_async_context(RedisRegistry(chosen.redis_url, prefix=prefix))
        stack.push_async_callback(remove_queues, broker, [one.name for one in agent.capabilities])
        runtime = await stack.enter_async_context(
            running_agent(
                agent, broker=own, registry=registry, settings=chosen, clock=SystemClock(), drain=asyncio.Event()
            )
        )
        client = await stack.enter_async_context(Client(broker, registry))
        yield Running(runtime, client, broker, registry, own)


async def remove_queues(broker: Broker, capabilities: Iterable[str]) -> None:
    """Removes the capabilities' queues with what lies in them."""
    for capability in capabilities:
        for queue in reversed(capability_queues(capability).queues):
            await broker.delete_queue(queue.name)
