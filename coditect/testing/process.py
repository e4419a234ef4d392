"""The simulated processes of a fleet under test: agents, control planes, and the processes of their suspects."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import ContextVar
from dataclasses import replace
from enum import StrEnum
from typing import Any

from coditect.agent.context import TaskContext
from coditect.agent.declaration import Agent, Capability, Where
from coditect.agent.pool import ProcessDied, Worker, Workers
from coditect.agent.runtime import Runtime
from coditect.aio.supervisor import Health, run_until
from coditect.broker.memory import MemoryBroker
from coditect.model.ids import AgentId
from coditect.model.registration import Load
from coditect.model.task import Task
from coditect.testing.virtual_time import Actor

Program = Callable[["VirtualProcess"], AbstractAsyncContextManager[Any]]
"""A function that puts a process together on its own connection; the process works while the context is entered."""


class State(StrEnum):
    """The state of a simulated process."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """The process is stopped, as by SIGSTOP."""
    KILLED = "killed"
    """The process is dead, as by SIGKILL."""
    ENDED = "ended"
    """The process drained and ended by itself."""


class VirtualProcess:
    """A simulated process of a fleet: its id, its state, its program, and its connection to the in-memory broker."""

    def __init__(self, id_: AgentId, name: str, broker: MemoryBroker, actor: Actor, program: Program) -> None:
        self.id = id_
        """The id of this process, which is the agent's id."""
        self.name = name
        """The name of the agent, which several processes share."""
        self.state = State.STARTING
        self.program = program
        """The program that the process runs."""
        self.broker = broker
        """The process's connection to the in-memory broker."""
        self.actor = actor
        self.drain = asyncio.Event()
        """The event that makes the process drain and end, as SIGTERM does."""
        self.health = Health()
        """The state of the process's loops, which the loops report."""
        self.work: asyncio.Task[None] | None = None
        self.replaced = False
        """Whether another process was started in its place."""
        self.silence: asyncio.TimerHandle | None = None
        """The timer after which the broker gives up the connection of a paused process."""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runtime: Runtime | None = None

    def __repr__(self) -> str:
        return f"VirtualProcess({self.id!r}, {self.state.value})"

    @property
    def load(self) -> Load:
        """The present load of an agent's process, such as its slots in use; a default `Load` while it does not run."""
        return Load() if self._runtime is None else self._runtime.load()

    @property
    def lives(self) -> bool:
        """True when the process was started and has not ended; a paused process lives."""
        return self.state in (State.STARTING, State.RUNNING, State.PAUSED)

    def terminate(self) -> bool:
        """Do what a handler does that sends SIGTERM to its own process, and tell whether the agent ends by that.

        A suspect's own process ends instead of the agent.
        """
        worker = _WORKER.get()
        if worker is None:
            self.drain.set()
        else:
            worker.terminate()
        return worker is None

    def heard(self) -> None:
        """Stop the timer after which the broker gives up the connection of a paused process."""
        if self.silence is not None:
            self.silence.cancel()
            self.silence = None

    async def start(self) -> None:
        """Start the simulated process in the background, and return when it is ready for work.

        Raises:
            Exception: any error that the program raises.
        """
        loop = asyncio.get_running_loop()
        self.work = loop.create_task(self._live(), name=self.id, context=self.actor.context())
        await asyncio.wait({self.work, self._ready}, return_when=asyncio.FIRST_COMPLETED)
        if self.work.done():
            self.work.result()

    async def _live(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.broker)
                running = await stack.enter_async_context(self.program(self))
                self._runtime = running if isinstance(running, Runtime) else None
                self.state = State.RUNNING
                self._ready.set_result(None)
                own = getattr(running, "health", self.health)
                await run_until(self.drain, self.health.failure(), own.failure())
        finally:
            self._runtime = None
            if self.state is not State.KILLED:
                self.state = State.ENDED


class VirtualWorker(Worker):
    """A simulated process of a suspect, which runs in the agent's event loop and ends alone."""

    def __init__(self, capability: Capability) -> None:
        self._capability = capability
        self._ended = asyncio.get_running_loop().create_future()

    def terminate(self) -> None:
        """End this process alone, as SIGTERM does."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def call(self, task: Task, context: TaskContext) -> bytes:
        """Run the handler until it returns or the process ends; see `Worker.call`."""
        token = _WORKER.set(self)
        handling = asyncio.ensure_future(self._handle(task, context))
        _WORKER.reset(token)
        handling.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait({handling, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not handling.done():
                raise ProcessDied("The handler's process ended before its result", signal="SIGTERM")
            return handling.result()
        finally:
            handling.cancel()

    async def _handle(self, task: Task, context: TaskContext) -> bytes:
        shape, handler = self._capability.signature, self._capability.handler
        value = shape.input.decode(task.body)
        arguments = (value, context) if shape.wants_context else (value,)
        on_loop = self._capability.where is Where.LOOP
        result = await (handler(*arguments) if on_loop else asyncio.to_thread(handler, *arguments))
        return shape.output.encode(result)

    async def kill(self) -> None:
        """End this simulated process, as `Worker.kill` does; the agent that started it continues."""
        self.terminate()


class VirtualWorkers(Workers):
    """The simulated processes of an agent's suspects."""

    async def start(self, capability: Capability) -> Worker:
        """Return a new simulated process; see `Workers.start`."""
        return VirtualWorker(capability)


_WORKER: ContextVar[VirtualWorker | None] = ContextVar("coditect_testing_worker", default=None)


class InProcess(Agent):
    """A copy of an agent whose `process=True` handlers run in threads or on the loop, not in child processes."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(
            agent.name,
            version=agent.version,
            slots=agent.slots,
            reserve=agent.reserve,
            tags=agent.tags,
            description=agent.description,
            breakers=agent.breakers.values(),
            lifespan=agent.lifespan,
            middleware=agent.middleware_stack,
        )
        self._agent = agent
        self.handoff_policy = agent.handoff_policy
        self.listeners = agent.listeners

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """The agent's capabilities, changed so that `process=True` handlers run in a thread or on the loop."""
        return tuple(_here(capability) for capability in self._agent.capabilities)


def _here(capability: Capability) -> Capability:
    if capability.where is not Where.PROCESS:
        return capability
    on_loop = inspect.iscoroutinefunction(capability.handler)
    return replace(capability, where=Where.LOOP if on_loop else Where.THREAD)
