"""The command line on in-memory servers: each command runs its own event loop, the servers outlive it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from typer.main import get_command
from typer.testing import CliRunner

from coditect.broker.management import QueueRates
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import MISSING, SAME, Probe
from coditect.broker.topology import Binding, Exchange, Queue, Topology, agent_queues, base_topology
from coditect.broker.topology_diff import PlannedBroker
from coditect.cli.main import app
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.client.options import Options
from coditect.errors import CoditectError, ResultTimeout
from coditect.model.capability import CapabilitySpec, Priority
from coditect.model.duration import Duration
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Event
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.model.result import Outcome, Status
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Registry
from tests.control_plane import ScriptedPlane

AGENT = AgentId("reviewer-00000001")
OFFERED = ("code.review", "tests.run")


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words and the command of every command; groups are loaded when they are asked for."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        is_group = bool(hasattr(command, "list_commands") and command.list_commands(None))
        if not is_group or command.invoke_without_command:
            yield (*words, name), command
        if is_group:
            yield from commands(command, (*words, name))


EVERY = dict(commands(get_command(app)))


class ProbedBroker(MemoryBroker):
    """A connection that can compare: queues with what the server holds, exchanges with what the test says."""

    def __init__(self, server: MemoryServer, answers: Mapping[str, Probe]) -> None:
        super().__init__(server)
        self._answers = answers

    async def probe(self, entity: Exchange | Queue) -> Probe:
        if entity.name in self._answers:
            return self._answers[entity.name]
        if isinstance(entity, Exchange):
            return SAME
        return SAME if self._server.find(entity.name) else MISSING


class Screen(io.StringIO):
    """A terminal that keeps what is drawn."""

    def isatty(self) -> bool:
        return True


def happening(kind: str, subject: str, **data: object) -> Event:
    return Event(kind, "/agents/a", "event-1", 1_800_000_000_000, subject, data)


@dataclass(slots=True)
class Ordered:
    """What a command submitted."""

    capability: str
    value: Any
    options: Options


class ScriptedHandle:
    """A task whose end is written down."""

    def __init__(self, task_id: str, end: Outcome | CoditectError | None, happenings: list[Event]) -> None:
        self.task_id = task_id
        self._end = end
        self._happenings = happenings
        self.parts: list[object] = []
        self.canceled: list[str] = []

    async def stream(self, *, timeout: Duration) -> AsyncIterator[object]:
        for part in self.parts:
            if isinstance(part, CoditectError):
                raise part
            yield part

    async def cancel(self, *, reason: str) -> None:
        self.canceled.append(reason)

    async def outcome(self, *, timeout: Duration) -> Outcome:
        await asyncio.sleep(0.01)
        if self._end is None:
            raise ResultTimeout("No result came within the caller's time", task_id=self.task_id)
        if isinstance(self._end, CoditectError):
            raise self._end
        return self._end

    async def events(self) -> AsyncIterator[Event]:
        for happening in self._happenings:
            yield happening


@dataclass(slots=True)
class ScriptedTasks:
    """What a client's `tasks` were asked to cancel."""

    canceled: list[str]
    real: Client

    async def cancel(self, task_id: str) -> None:
        self.canceled.append(task_id)

    def get(self, task_id: str) -> Handle:
        return self.real.tasks.get(task_id)


@dataclass(slots=True)
class ScriptedClient:
    """Stands in for the client with direct tasks and events: `end` says how each task ends."""

    end: Callable[[str], Outcome | CoditectError | None]
    happenings: list[Event] = field(default_factory=list)
    orders: list[Ordered] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)
    refusal: CoditectError | None = None
    parts: list[object] = field(default_factory=list)
    handles: list[ScriptedHandle] = field(default_factory=list)
    emitted: list[tuple[object, ...]] = field(default_factory=list)
    real: Client = field(init=False)
    """The client that does everything else."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def emit_data(self, type_: str, data: Mapping[str, Any], *, subject: str, by: str) -> str:
        self.emitted.append((type_, data, subject, by))
        return "event-1"

    async def submit(
        self,
        capability: str,
        value: object,
        *,
        options: Options | None = None,
        priority: Priority = Priority.P1,
        task_id: TaskId | None = None,
        durable: bool = False,
    ) -> ScriptedHandle | Handle:
        if durable:
            return await self.real.submit(capability, value, options=options, durable=True)
        if self.refusal is not None:
            raise self.refusal
        self.orders.append(Ordered(capability, value, options or Options(priority=priority)))
        own_id = f"task-{len(self.orders)}"
        self.handles.append(ScriptedHandle(own_id, self.end(own_id), self.happenings))
        self.handles[-1].parts = self.parts
        return self.handles[-1]

    @property
    def tasks(self) -> ScriptedTasks:
        return ScriptedTasks(self.canceled, self.real)

    @asynccontextmanager
    async def events(self, pattern: str, *, of: str | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        yield ScriptedHandle("", None, self.happenings).events()


def completed(task_id: str, body: bytes = b'{"ok":true}') -> Outcome:
    return Outcome(Status.COMPLETED, body, task_id, task_id, agent_id=AGENT)


@dataclass(slots=True)
class MemoryConnections:
    """Everything in memory."""

    server: MemoryServer = field(default_factory=MemoryServer)
    directory: MemoryRegistry = field(default_factory=MemoryRegistry)
    bridged: MemoryRegistry = field(default_factory=MemoryRegistry)
    scripted: ScriptedClient = field(default_factory=lambda: ScriptedClient(completed))
    probes: dict[str, Probe] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    plane: ScriptedPlane = field(default_factory=ScriptedPlane)
    bound: frozenset[Binding] | None = None
    rates: Mapping[str, QueueRates] | CoditectError | None = None

    async def bindings(self) -> frozenset[Binding] | None:
        return self.bound

    async def queue_rates(self) -> Mapping[str, QueueRates] | None:
        if isinstance(self.rates, CoditectError):
            raise self.rates
        return self.rates

    def broker(self) -> AbstractAsyncContextManager[PlannedBroker]:
        return ProbedBroker(self.server, self.probes)

    def registry(self) -> AbstractAsyncContextManager[Registry]:
        return self.directory

    def http_agents(self) -> AbstractAsyncContextManager[Registry]:
        return self.bridged

    @asynccontextmanager
    async def fleet(self) -> AsyncIterator[Client]:
        async with (
            MemoryBroker(self.server, name="plane") as broker,
            self.plane.serving(broker, *OFFERED),
            MemoryBroker(self.server, name="cli") as own,
            Client(own, self.directory) as client,
        ):
            self.scripted.real = client
            yield cast(Client, self.scripted)


class Served(MemoryConnections):
    """With a control plane beside every connection."""

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[PlannedBroker]:
        async with (
            MemoryBroker(self.server, name="plane") as plane,
            self.plane.serving(plane),
            ProbedBroker(self.server, self.probes) as own,
        ):
            yield own


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal:
    """Runs commands on one set of connections."""

    def __init__(self) -> None:
        self.connections = MemoryConnections()

    def run(self, *words: str, stdin: str | bytes | None = None) -> Ran:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            result = CliRunner().invoke(app, list(words), obj=self.connections, input=stdin)
        finally:  # what a command sets up would write to its stderr, which is closed by now
            root.handlers[:] = handlers
            root.setLevel(level)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    def broker(self, work: Callable[[PlannedBroker], Awaitable[Any]]) -> Any:
        """Does something at the broker, in a loop of its own."""

        async def connected() -> Any:
            async with self.connections.broker() as broker:
                return await work(broker)

        return asyncio.run(connected())

    def register(
        self,
        agent_id: str = AGENT,
        *,
        capability: str = "code.review",
        trouble: str = "",
        max_queued: int | None = None,
    ) -> None:
        """Puts an agent into the registry."""
        registration = Registration(
            agent_id=AgentId(agent_id),
            name="reviewer",
            version="1.0.0",
            slots=8,
            capabilities=(
                CapabilitySpec(capability, "Reads code.", tags=frozenset({"python"}), max_queued=max_queued),
            ),
            host="here",
            pid=42,
            started_at_ms=1_800_000_000_000,
        )
        load = Load(AgentStatus.BUSY, running=3, resident_bytes=50_000_000, completed=7, trouble=trouble)
        asyncio.run(self.connections.directory.register(registration, load, lease_seconds=60))

    def declare(self, topology: Topology) -> None:
        self.broker(lambda broker: broker.declare(topology))

    def open_mailbox(self) -> None:
        """Makes the queues of an agent that does not run."""
        self.declare(base_topology() + agent_queues(AGENT, slots=1))

    def count(self, queue: str) -> int:
        """Ready messages."""
        return self.connections.server.queue(queue).stats.messages
