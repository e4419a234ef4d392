"""The `TestFleet`: a whole fleet in the test's own process, with faults to inject and views of its state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import EntryPoints, entry_points
from itertools import count
from random import Random
from types import TracebackType
from typing import Any, Self

from coditect.agent.declaration import Agent
from coditect.agent.heartbeat import Usage
from coditect.agent.program import running_agent
from coditect.agent.runtime import Runtime
from coditect.agent.services import Host
from coditect.aio.clock import Clock
from coditect.blobs import open_blobs
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import base_topology, event_queue
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import CoditectError, InvalidTask, NotFound, SetupError
from coditect.model.capability import nearest_names
from coditect.model.duration import Duration, seconds
from coditect.model.ids import AgentId
from coditect.model.message import Event
from coditect.operations.dead_letters import DeadLetters, Selection
from coditect.operations.letter import DeadLetter
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Registry
from coditect.settings.settings import Settings
from coditect.testing.process import InProcess, Program, State, VirtualProcess
from coditect.testing.virtual_time import Actor, Jobs, Schedule, SeededClock, VirtualClock, virtual_loop
from coditect.wire import routing
from coditect.wire.events import read_event
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition


class FleetStuck(CoditectError):
    """The error of a test that waits in vain: nothing in the fleet can end the wait, or the wait lasts too long."""


class FleetCrashed(ExceptionGroup[Exception]):
    """The group of the exceptions that the fleet's background work raised and that the test did not forgive."""


@contextmanager
def warnings_muted() -> Iterator[None]:
    """Drop log records of level WARNING and below inside the block, for processes that end after their servers."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


class Crashes(logging.Handler):
    """The collector of exceptions that the given packages log as errors, or that the event loop reports."""

    def __init__(self, loop: asyncio.AbstractEventLoop, packages: Iterable[str]) -> None:
        super().__init__(logging.ERROR)
        self.found: list[Exception] = []
        self._loop = loop
        self._loggers = [logging.getLogger(package) for package in sorted(set(packages))]
        self._next = loop.get_exception_handler()

    def open(self) -> None:
        """Start collecting errors that are logged or reach the event loop."""
        for logger in self._loggers:
            logger.addHandler(self)
        self._loop.set_exception_handler(self._reached)

    def close(self) -> None:
        """Stop collecting errors, and give the loop its own error handler back."""
        for logger in self._loggers:
            logger.removeHandler(self)
        self._loop.set_exception_handler(self._next)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Collect the exception of a logged error, if the log record has one."""
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            self.add(record.exc_info[1], record.getMessage())

    def add(self, error: Exception, where: str) -> None:
        """Collect an exception, unless that was done before, and add a note that tells where it was found."""
        if not any(error is known for known in self.found):
            error.add_note(f"In the background of a TestFleet: {where}")
            self.found.append(error)

    def _reached(self, loop: asyncio.AbstractEventLoop, facts: dict[str, Any]) -> None:
        error = facts.get("exception")
        if isinstance(error, Exception):
            self.add(error, str(facts.get("message", "")))
        elif self._next is not None:
            self._next(loop, facts)
        else:
            loop.default_exception_handler(facts)


START = datetime(2026, 1, 1, tzinfo=UTC)
CONTROL_PLANES = "coditect.control_plane"
"""The group of entry points under which a control plane registers itself."""
_MOST_LETTERS = 10_000
SILENCE_SECONDS = 10.0
"""The time without a sign of life, two connection heartbeats of 5 s, after which the broker gives a connection up."""
_END_SECONDS = 5.0
_END_ROUNDS = 3


@cache
def installed_control_planes() -> EntryPoints:
    """Return the entry points of the installed control planes, for which every installed package is read once."""
    return entry_points(group=CONTROL_PLANES)


class TestFleet:
    """Agents, a control plane and a client over an in-memory broker and registry, in the test's event loop.

    ::

        async with TestFleet(agents=[reviewer], seed=7) as fleet:
            handle = await fleet.submit("code.review", {"pr": 42})
            fleet.kill("reviewer-1")
            await fleet.advance("2d")

    Inside the block the loop's time is virtual. It stands still while anything can run, and jumps to the next timer
    when nothing can: no wait takes real time. The same seed gives the same run. Leaving the block kills all processes.

    Raises:
        FleetCrashed: on exit, when background work failed meanwhile.
        FleetStuck: on exit, when the test waited in vain.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(
        self,
        agents: Iterable[Agent] = (),
        *,
        seed: int = 0,
        replicas: int | Mapping[str, int] = 1,
        settings: Settings | None = None,
        start: datetime = START,
        stuck_after: Duration = "5s",
        patience: Duration = "7d",
        clocks_ahead_seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Declare the fleet; `replicas` is the number of processes per agent, for all agents or by the agent's name.

        `start` is the time of day at which virtual time begins. A plain handler's thread that takes longer than
        `stuck_after`, in real time, no longer holds virtual time up. A test that waits for `patience`, in virtual time,
        without a result is stuck. `clocks_ahead_seconds` sets the clocks of processes (by the id of one, or the name of
        an agent; `client` is the fleet's own) wrong; negative: behind.
        """
        self._clocks_ahead_seconds = dict(clocks_ahead_seconds or {})
        self._declared = tuple(agents)
        self._added: list[Agent] = []
        self._seed = seed
        self._replicas = replicas if isinstance(replicas, int) else dict(replicas)
        self._settings = settings or Settings()
        self._epoch_ms = round(start.timestamp() * 1000)
        self._stuck_after_seconds = seconds(stuck_after)
        self._patience_seconds = seconds(patience)
        self._outside = (Actor("broker"), Actor("observer"))
        self._processes: list[VirtualProcess] = []
        self._numbers: dict[str, count[int]] = {}
        self._events: list[Event] = []
        self._stack = AsyncExitStack()
        self._test: asyncio.Task[Any] | None = None
        self._stuck: FleetStuck | None = None
        self._ended = False

    # -- life -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        loop = virtual_loop()
        self._test = asyncio.current_task()
        self._virtual_clock = VirtualClock(
            loop,
            beat_seconds=self._settings.beat_seconds,
            stuck_after_seconds=self._stuck_after_seconds,
            patience_seconds=self._patience_seconds,
            skipped=self._skipped,
            stuck=self._waits_in_vain,
        )
        self._schedule = Schedule(loop, self._virtual_clock, self._random("schedule"))
        self._crashes = Crashes(loop, ["coditect", *(plane.value for plane in installed_control_planes())])
        self._virtual_clock.open()
        self._schedule.open()
        self._crashes.open()
        try:
            await self._open(self._control_planes())
        except BaseException:
            await self._end()
            raise
        return self

    async def _open(self, planes: Mapping[str, Callable[..., Any]]) -> None:
        broker, observer = self._outside
        make = partial(MemoryServer, clock=self._clock("broker"), seeded=self._random("consumers"))
        self.server: MemoryServer = broker.context().run(make)
        """The in-memory broker, with faults of its own: `stop`, `start`, `block`, `lose_next_confirms`."""
        self.registry = MemoryRegistry(now=asyncio.get_running_loop().time, wall_ms=self._clock("registry").now_ms)
        """The in-memory registry, with faults of its own: `failing`, `slow_seconds`."""
        await asyncio.get_running_loop().create_task(self._observe(), context=observer.context())
        for name, running in planes.items():
            await self._start(name, partial(self._plane, running))
        for agent in self._declared:
            await self.add(agent, replicas=self._replicas_of(agent))
        self._broker = await self._stack.enter_async_context(MemoryBroker(self.server, name="test"))
        blobs = open_blobs(self._settings.blob_url, most_bytes=self._settings.blob_max_bytes)
        self.client = Client(self._broker, self.registry, clock=self._clock("client"), name="client-test", blobs=blobs)
        """A client of the fleet, open as long as the fleet is."""
        await self._stack.enter_async_context(self.client)
        await self.settled()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look_for_lost_errors()
        await self._end()
        crashes = self.crashes
        if self._stuck is not None and (error is None or isinstance(error, asyncio.CancelledError)):
            if self._test is not None:
                self._test.uncancel()
            raise self._stuck from error
        if error is None and crashes:
            raise FleetCrashed("Background work of the fleet failed", crashes)
        for crash in crashes:
            if error is not None:
                error.add_note(f"In the background of the fleet: {crash!r}")

    async def _end(self) -> None:
        self._ended = True
        self._crashes.close()
        self._virtual_clock.jobs = Jobs()  # no thread is waited for any more
        try:
            await self._stack.aclose()
            with warnings_muted():
                await self._end_processes()
        finally:
            for actor in self._outside:
                self._schedule.stop(actor)
            self._schedule.close()
            self._virtual_clock.close()

    async def _end_processes(self) -> None:
        """Kill all living processes, and then end their coroutines, which cannot reach any server any more."""
        for process in self._processes:
            if process.lives:
                self._kill(process)
        actors = [process.actor for process in self._processes]
        for _ in range(_END_ROUNDS):
            left = [task for actor in actors for task in actor.tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            for actor in actors:
                self._schedule.go_on(actor)
            await asyncio.wait(left, timeout=_END_SECONDS)
        for actor in actors:
            self._schedule.stop(actor)

    def _look_for_lost_errors(self) -> None:
        """Collect errors of tasks that no code awaited; asyncio itself reports these only at garbage collection."""
        for process in self.processes:
            for task in process.actor.tasks:
                if task.done() and not task.cancelled() and getattr(task, "_log_traceback", False):
                    error = task.exception()
                    if isinstance(error, Exception):
                        self._crashes.add(error, f"{task.get_name()} of {process.id}")

    def _waits_in_vain(self, why: str) -> None:
        stuck = FleetStuck(
            why,
            elapsed_seconds=round(self._virtual_clock.now, 3),
            paused=[process.id for process in self.processes if process.state is State.PAUSED],
            killed=[process.id for process in self.processes if process.state is State.KILLED],
            fix="await something that the fleet brings about, resume or restart what should do it, "
            "or give the await a timeout",
        )
        if self._stuck is None and not self._ended and self._test is not None and not self._test.done():
            self._stuck = stuck
            self._test.cancel()
        else:
            raise stuck

    def _skipped(self, span_seconds: float) -> None:
        self.registry.extend([process.id for process in self.processes if process.state is State.RUNNING], span_seconds)

    # -- what it is made of -----------------------------------------------------------------------------

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        """Return, by entry point's name, the function that runs a dispatcher of each installed control plane."""
        return {plane.name: plane.load().running_dispatcher for plane in installed_control_planes()}

    def _random(self, purpose: str) -> Random:
        return Random(f"{self._seed}/{purpose}")  # noqa: S311 - it is to be foreseen

    def _clock(self, purpose: str) -> Clock:
        wrong = self._clocks_ahead_seconds
        ahead_ms = round(1000 * wrong.get(purpose, wrong.get(purpose.rpartition("-")[0], 0.0)))
        return SeededClock(self._epoch_ms + ahead_ms, lambda: self._virtual_clock.now, self._random(purpose))

    def _replicas_of(self, agent: Agent) -> int:
        return self._replicas if isinstance(self._replicas, int) else self._replicas.get(agent.name, 1)

    def _registry_of(self, process: VirtualProcess) -> Registry:
        """Return the registry through which a process works; a subclass may return one with faults."""
        return self.registry

    def _agent(self, agent: Agent, process: VirtualProcess) -> AbstractAsyncContextManager[Runtime]:
        return running_agent(
            InProcess(agent),
            broker=process.broker,
            registry=self._registry_of(process),
            settings=self._settings,
            clock=self._clock(process.id),
            drain=process.drain,
            agent_id=process.id,
            host=self._host(process),
        )

    def _host(self, process: VirtualProcess) -> Host:
        """Return what an agent gets from its process; a subclass may let suspects run apart, by `VirtualWorkers`."""
        return Host(sample=lambda: Usage(0.0, 0), workers=None, health=process.health)

    def _plane(self, running: Callable[..., Any], process: VirtualProcess) -> AbstractAsyncContextManager[Any]:
        plane: AbstractAsyncContextManager[Any] = running(
            broker=process.broker,
            registry=self._registry_of(process),
            clock=self._clock(process.id),
            owner=process.id,
            evict=self.server,
        )
        return plane

    async def _observe(self) -> None:
        """Record every event of the fleet until it ends."""
        broker = await MemoryBroker(self.server, name="observer").__aenter__()
        await broker.declare(base_topology() + event_queue("events.test", ("#",)))
        await broker.consume("events.test", self._heard, prefetch=1_000)

    def _heard(self, delivery: Delivery) -> None:
        with suppress(InvalidTask):  # a stranger's message is no event of the fleet
            now_ms = self._epoch_ms + round(self._virtual_clock.now * 1000)
            self._events.append(read_event(delivery.message, now_ms))
        delivery.ack()

    # -- time -------------------------------------------------------------------------------------------

    @property
    def elapsed_seconds(self) -> float:
        """The virtual seconds since the fleet's block was entered."""
        return self._virtual_clock.now

    async def advance(self, span: Duration) -> None:
        """Let a span of virtual time pass; return when everything due in the span, or at its very end, has happened."""
        await self.settled()
        self._virtual_clock.heard = self._virtual_clock.now + seconds(span)
        await asyncio.sleep(seconds(span))
        await self.settled()

    async def settled(self) -> None:
        """Wait until no process has anything left to do at the present virtual time, which does not pass meanwhile."""
        await self._virtual_clock.settled()

    # -- work -------------------------------------------------------------------------------------------

    async def submit(self, capability: str, input: Any = None, **how: Any) -> Handle:
        """Submit a task by the fleet's own client; see `Client.submit`."""
        return await self.client.submit(capability, input, **how)

    async def start(self, workflow: Workflow | Definition, input: Any = None, **how: Any) -> WorkflowRun:
        """Start a workflow on the fleet's control plane; see `Client.start`."""
        return await self.client.start(workflow, input, **how)

    async def request(self, capability: str, input: Any = None, model: Any = Any, **how: Any) -> Any:
        """Submit a task, wait for its end, and return the result's value; see `Client.request`."""
        return await self.client.request(capability, input, model, **how)

    # -- processes --------------------------------------------------------------------------------------

    async def add(self, agent: Agent, *, replicas: int = 1) -> tuple[VirtualProcess, ...]:
        """Start more processes of an agent, and return them when they are ready for tasks."""
        self._check_open()
        self._added.append(agent)
        return tuple([await self._start(agent.name, partial(self._agent, agent)) for _ in range(replicas)])

    async def _start(self, name: str, program: Program) -> VirtualProcess:
        id_ = AgentId(f"{name}-{next(self._numbers.setdefault(name, count(1)))}")
        process = VirtualProcess(id_, name, MemoryBroker(self.server, name=id_), Actor(id_), program)
        self._processes.append(process)
        await process.start()
        return process

    def kill(self, target: str) -> tuple[VirtualProcess, ...]:
        """Kill a simulated process by id, or all of an agent's by name: none of its code runs before the fleet ends.

        No code of the process runs any more, not even a `finally` before the fleet ends. Unacknowledged deliveries go
        back to the queues now; its lease lapses with time. A thread that runs is not ended.

        Raises:
            NotFound: when no process of this name or id lives.
        """
        return tuple(self._kill(process) for process in self._living(target))

    def _kill(self, process: VirtualProcess) -> VirtualProcess:
        self._schedule.stop(process.actor)
        process.state = State.KILLED
        process.heard()
        process.broker.vanish()
        return process

    def pause(self, target: str) -> tuple[VirtualProcess, ...]:
        """Stop a process, or every process of an agent, as SIGSTOP does: a stopped process does nothing until `resume`.

        Its lease lapses after 3 s. It keeps its deliveries until the control plane evicts it then, or the broker gives
        its connection up after 10 s of silence. A thread that runs is not stopped.
        """
        paused = tuple(process for process in self._living(target) if process.state is not State.PAUSED)
        for process in paused:
            self._schedule.stop(process.actor)
            process.state = State.PAUSED
            process.silence = asyncio.get_running_loop().call_later(SILENCE_SECONDS, process.broker.drop)
        return paused

    def resume(self, target: str) -> tuple[VirtualProcess, ...]:
        """Let a paused process, or every process of an agent, continue, as SIGCONT does."""
        resumed = tuple(process for process in self._living(target) if process.state is State.PAUSED)
        for process in resumed:
            process.state = State.RUNNING
            process.heard()
            self._schedule.go_on(process.actor)
        return resumed

    async def restart(self, target: str) -> tuple[VirtualProcess, ...]:
        """Kill a process, or all of an agent's, and start each again under a fresh id unless restarted before."""
        former = self._known(target)
        for process in former:
            if process.lives:
                self._kill(process)
        latest = [process for process in former if not process.replaced]
        started = []
        for process in latest:
            process.replaced = True
            started.append(await self._start(process.name, process.program))
        return tuple(started)

    async def drain(self, target: str) -> tuple[VirtualProcess, ...]:
        """Drain a process, or every process of an agent, as SIGTERM does; return when the processes have ended."""
        draining = self._living(target)
        for process in draining:
            process.drain.set()
        await asyncio.wait([process.work for process in draining if process.work is not None])
        return draining

    def _living(self, target: str) -> tuple[VirtualProcess, ...]:
        living = tuple(process for process in self._known(target) if process.lives)
        if not living:
            raise NotFound(
                "No process of this name or id lives any more", given=target, fix=f"await fleet.restart({target!r})"
            )
        return living

    def _known(self, target: str) -> tuple[VirtualProcess, ...]:
        self._check_open()
        known = tuple(process for process in self._processes if target in (process.id, process.name))
        if not known:
            names = {name for process in self._processes for name in (process.id, process.name)}
            raise NotFound(
                "The fleet has no process of this name or id",
                given=target,
                nearest=nearest_names(target, names),
                fix="name an agent of the fleet, or one of its processes, such as fleet.agents[0].id",
            )
        return known

    def _check_open(self) -> None:
        if self._test is None or self._ended:
            raise SetupError("The fleet is not open", fix="async with TestFleet(...) as fleet:")

    # -- other faults -----------------------------------------------------------------------------------

    def drop_connections(self, target: str | None = None) -> None:
        """Cut the broker connections of a process or an agent; without a target, of all processes and of the client."""
        self._check_open()
        for process in self._processes if target is None else self._living(target):
            if process.lives:
                process.broker.drop()
        if target is None:
            self._broker.drop()

    def wipe_registry(self) -> None:
        """Remove everything from the registry, as if a Redis came back empty."""
        self.registry.wipe()

    # -- what there is to see ---------------------------------------------------------------------------

    @property
    def agents(self) -> tuple[VirtualProcess, ...]:
        """The living processes of agents, in order of their start."""
        names = {agent.name for agent in self._added}
        return tuple(process for process in self.processes if process.lives and process.name in names)

    @property
    def processes(self) -> tuple[VirtualProcess, ...]:
        """All processes of the fleet that ever started, also those of the control plane and dead ones."""
        return tuple(self._processes)

    @property
    def events(self) -> tuple[Event, ...]:
        """The events that the fleet has published so far, in the order of their arrival."""
        return tuple(self._events)

    @property
    def crashes(self) -> tuple[Exception, ...]:
        """The fleet's background errors so far; leaving `async with` raises them, or notes them on the test's error."""
        return tuple(self._crashes.found)

    def forgive_crashes(self) -> tuple[Exception, ...]:
        """Forget and return the crashes so far, which the test expected: leaving the block does not raise them."""
        forgiven = self.crashes
        self._crashes.found.clear()
        return forgiven

    async def dead_letters(self, capability: str | None = None) -> tuple[DeadLetter, ...]:
        """Return, without removing any, the dead letters of one capability, or of all agents and the unrouted tasks."""
        declared = {spec.name for agent in self._added for spec in agent.capabilities}
        names = declared if capability is None else {capability}
        queues = [routing.dead_queue(name) for name in sorted(names)]
        if capability is None:
            queues.append(routing.UNROUTED_QUEUE)
        letters = DeadLetters(self._broker, self._clock("dead letters"))
        async with aclosing(letters.browse(queues, Selection(), most=_MOST_LETTERS)) as found:
            return tuple([letter async for letter in found])
