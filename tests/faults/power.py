"""A control plane over a SQLite store in one process, with its own agent: what a power loss is tried on.

python -m tests.faults.power FILE   starts workflows until it is killed, and prints the id of each that was accepted
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from coditect import Agent, Client, Workflow
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.workflow.definition import Definition
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.store.sqlite import SqliteDatabase

AT_ONCE = 8
NODES = 13


def workflow() -> Definition:
    """Layers, a condition and a map."""
    flow = Workflow("powered")
    first = flow.task("work.do", {"number": 1}, name="first")
    middle = [flow.task("work.do", first.result, name=f"middle{number}") for number in range(4)]
    last = flow.task("work.do", {"all": [node.result for node in middle]}, name="last")
    flow.map("work.do", [1, 2, 3, 4, 5], after=[last], name="each")
    flow.task("work.do", last.result, name="behind")
    return flow.definition()


@asynccontextmanager
async def powered(path: Path) -> AsyncIterator[tuple[SqliteDatabase, Client]]:
    """A dispatcher of two shards on the store, an agent, a client, and a broker and a registry that are new."""
    agent = Agent("worker")

    @agent.capability("work.do")
    async def do(value: object) -> object:
        await asyncio.sleep(0)
        return {"done": True}

    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    async with AsyncExitStack() as stack:

        async def broker(name: str) -> MemoryBroker:
            return await stack.enter_async_context(MemoryBroker(server, name=name))

        database = await stack.enter_async_context(SqliteDatabase(path))
        options = DispatcherOptions(shards=2, owner="dispatcher")
        dispatcher = running_dispatcher(
            broker=await broker("dispatcher"), registry=registry, clock=clock, database=database, options=options
        )
        await stack.enter_async_context(dispatcher)
        worker = running_agent(
            agent,
            broker=await broker("worker"),
            registry=registry,
            clock=clock,
            settings=Settings(slots=16),
            drain=asyncio.Event(),
        )
        await stack.enter_async_context(worker)
        client = Client(await broker("client"), registry, clock=clock, name="client")
        yield database, await stack.enter_async_context(client)


async def work(path: Path) -> None:
    """Start workflows, some at once, and say of each that it was accepted."""
    definition = workflow()

    async def one_after_the_other(client: Client) -> None:
        while True:
            run = await client.start(definition)
            os.write(1, f"{run.id}\n".encode())
            await run.wait(timeout="1m")

    async with powered(path) as (_, client), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other(client))


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))
