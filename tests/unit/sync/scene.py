"""A synchronous client and an agent on the memory twins: both live on the client's own loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.errors import SetupError
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.sync import SyncClient

SECONDS = 150.0
"""After which a test gives up; nothing takes as long."""


class SurroundedClient(Client):
    """A client on the twins, which brings along what it needs around it."""

    def __init__(self) -> None:
        self._server = MemoryServer()
        self._around = AsyncExitStack()
        self._memory = MemoryBroker(self._server, name="client")
        self._found = MemoryRegistry()
        super().__init__(self._memory, self._found)

    async def __aenter__(self) -> Self:
        await self._around.enter_async_context(self._memory)
        await self.surround()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await self._around.aclose()

    async def surround(self) -> None:
        """Enter everything beside the client's own connection."""
        raise NotImplementedError

    async def link(self, name: str) -> MemoryBroker:
        """Another connection to the client's broker."""
        return await self._around.enter_async_context(MemoryBroker(self._server, name=name))

    async def run_agents(self, *agents: Agent) -> None:
        for agent in agents:
            running = running_agent(
                agent,
                broker=await self.link(agent.name),
                registry=self._found,
                settings=Settings(drain_seconds=0.3),
                clock=SystemClock(),
                drain=asyncio.Event(),
            )
            await self._around.enter_async_context(running)


class FleetClient(SurroundedClient):
    """A client that brings its fleet along."""

    def __init__(self, *agents: Agent) -> None:
        self._agents = agents
        self.opening: Callable[[], object] = lambda: None
        self.left = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__()

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        opening = self.opening()
        if asyncio.iscoroutine(opening):
            await opening
        return await super().__aenter__()

    async def surround(self) -> None:
        await self.run_agents(*self._agents)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        self.left.set()


class Hall:
    """An agent that says what it is told, and holds one task until it is let go."""

    def __init__(self) -> None:
        self.held = threading.Event()
        """A held task runs."""
        self.let_go = threading.Event()
        self.heard: list[object] = []
        self.client: SyncClient | None = None
        self.agent = Agent("hall", slots=50)
        self.agent.capability("hall.say")(self.say)
        self.agent.capability("hall.fail")(self.fail)
        self.agent.capability("hall.hold")(self.hold)
        self.agent.capability("hall.call")(self.call)
        self.agent.on_broadcast("news")(self.heard.append)

    async def say(self, words: object) -> object:
        return words

    async def fail(self, words: str) -> object:
        error = RuntimeError(words)
        error.retryable = False  # type: ignore[attr-defined]
        raise error

    async def hold(self, words: object) -> object:
        self.held.set()
        while not self.let_go.is_set():
            await asyncio.sleep(0.01)
        return words

    async def call(self, words: object) -> object:
        """A mistake: it waits on the loop that it runs on."""
        assert self.client is not None
        try:
            self.client.request("hall.say", words)
        except SetupError as error:
            return str(error)
        return "waited"
