"""A simulated run in one event loop: real dispatchers, agents and client, with servers in memory and virtual time.

The seed decides everything: the order of tasks, the faults of the store's transactions, the place where a process dies,
the absence of Redis and the broker. So a seed that broke a promise breaks it again, at the same step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, cast

from chaos.capacity import BacklogCapacity
from chaos.checks.check import CheckResult
from chaos.checks.invariants import judge
from chaos.failpoints import Failpoints
from chaos.faults.network import RemotePort
from chaos.faults.strangers import Strangers
from chaos.history import HistoryEntry, Note, Notebook, Type, merged
from chaos.load.parts.poison import SUICIDES, TERMINATE
from chaos.load.parts.table import PARTS
from chaos.load.policy import chaos_policy
from chaos.load.work import CAPABILITY, SLOTS, EffectTable, children_agent, working_agent
from chaos.load.workload import ChaosLoad
from chaos.looking import RegistryLook, keep_looking, keep_looking_at_slots, taken
from chaos.reader import read_end
from chaos.recorder import RecordedBroker, RecordedDatabase, RecordedGraph
from chaos.simulated_nemesis import SimulatedNemesis, Target, post_of_process
from chaos.simulated_store import Disk, SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from chaos.simulation_plan import SimulationPlan, planned
from coditect.agent.services import Host
from coditect.aio.loop import plain_runner
from coditect.aio.network import NetworkPath
from coditect.broker.memory import MemoryBroker
from coditect.broker.memory.queue import MemoryQueue
from coditect.errors import RegistryUnavailable
from coditect.model.capability import Priority
from coditect.model.registration import AgentStatus
from coditect.registry.port import Registry
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.testing.process import State, VirtualProcess, VirtualWorkers
from coditect.wire import routing
from dispatcher.capacity import Capacity
from dispatcher.liveness.eviction import Evictor
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.taskgraph.port import TaskGraphUnavailable

LEFT_SECONDS = 200
"""The seconds after the end of the load in which a task queue must become empty."""
DRAIN_SECONDS = 1.0
"""How long an agent that ends in an orderly way lets its tasks run."""
OUTSIDE = (AgentStatus.STARTING, AgentStatus.DRAINING)
"""The states in which a living agent may be missing in the registry."""
CHILDREN = "children"
"""The name of the agent that executes the child tasks, which no fault hits."""


@dataclass(frozen=True, slots=True)
class Played:
    """The result of the simulated run of one seed: the checks, the history, the number of faults, and any crashes."""

    seed: int
    checks: tuple[CheckResult, ...]
    entries: tuple[HistoryEntry, ...]
    faults: int
    crashes: tuple[str, ...] = ()
    """The errors that ended a process's background work or the load, which no fault may cause."""

    @property
    def kept(self) -> bool:
        """Tell whether no promise was broken, and no background work crashed."""
        return not self.violations

    passed = kept
    caught = False
    """Always false, since a seed without a mutant has no mutant to catch."""

    @property
    def work(self) -> int:
        """The number of accepted workflows and tasks."""
        return sum(one.f == "accept" and one.type is Type.OK for one in self.entries)

    def lines(self) -> list[str]:
        """Return the seed's result as lines for a person."""
        word = "pass" if self.kept else "FAIL"
        told = f"{word}  seed {self.seed}: {self.work} workflows and tasks, {self.faults} faults"
        broken = [one for one in self.checks if not one.passed]
        crashed = [f"        crashed: {one}" for one in self.crashes]
        broke = [f"        {one.invariant} ({len(one.violations)}): {one.violations[0]}" for one in broken]
        return [told, *crashed, *broke]

    def as_json(self) -> dict[str, object]:
        """Return the seed's result as JSON values, for programs."""
        return {
            "seed": self.seed,
            "passed": self.kept,
            "faults": self.faults,
            "violations": list(self.violations[:100]),
        }

    @property
    def violations(self) -> tuple[str, ...]:
        """Each broken promise's violations, and each crash of background work, as a line of text."""
        broken = [f"{one.invariant}: {told}" for one in self.checks for told in one.violations]
        return (*(f"crashed: {one}" for one in self.crashes), *broken)


def play(seed: int, plan: SimulationPlan | None = None) -> Played:
    """Simulate one seed's run on an event loop of its own; deterministic except for code that reads the real clock."""
    with plain_runner() as runner:
        return runner.run(_play(seed, plan or SimulationPlan()))


async def _play(seed: int, plan: SimulationPlan) -> Played:
    scene = Scene(seed, planned(seed, plan))
    before = logging.root.manager.disable
    TERMINATE.set(scene.breaking.terminate)  # in the contexts of all processes
    logging.disable(logging.WARNING)  # everything breaks, and each time somebody says so
    try:
        async with scene.fleet:
            await scene.run()
            crashes = tuple(map(repr, (*scene.crashes, *scene.fleet.forgive_crashes())))
    finally:
        logging.disable(before)
    return Played(seed, tuple(judge(scene.entries)), tuple(scene.entries), scene.faults, crashes)


class SimulatedFleet(TestFleet):
    """A fleet of real agents and dispatchers in virtual time, in which each process has its own network paths."""

    planes: Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]
    paths: dict[str, dict[str, NetworkPath]]
    """The network paths of each process to its servers, by the servers' names."""

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        return self.planes

    apart = False
    """Whether suspects run in processes of their own."""

    def _host(self, process: VirtualProcess) -> Host:
        host = super()._host(process)
        return replace(host, workers=VirtualWorkers) if self.apart else host

    def _registry_of(self, process: VirtualProcess) -> Registry:
        path = NetworkPath()
        self.paths[post_of_process(process)] = {"broker": process.broker.path, "redis": path}
        return cast(Registry, RemotePort(self.registry, path, RegistryUnavailable))

    def _look_for_lost_errors(self) -> None:
        """Skip the test fleet's search for errors that nobody awaited, since killed processes leave some."""


class _RecordedEvictor:
    """A wrapper of the object that closes processes' broker connections; it records each eviction in the history."""

    def __init__(self, evict: Evictor, note: Note) -> None:
        self._evict = evict
        self._note = note

    async def evict(self, process: str) -> int:
        self._note(Type.OK, "evict", process)
        return await self._evict.evict(process)

    async def queues(self) -> frozenset[str]:
        return await self._evict.queues()

    async def messages(self, queue: str) -> int | None:
        return await self._evict.messages(queue)


class Scene:
    """The simulated fleet of one seed, with its load and its faults."""

    def __init__(self, seed: int, plan: SimulationPlan) -> None:
        self._plan = plan
        self._seed = seed
        self.notebook = Notebook(lambda: asyncio.get_running_loop().time())
        self._effects = EffectTable()
        self._disk = Disk()
        self._graph = MemoryTaskGraph()
        self.entries: list[HistoryEntry] = []
        self.crashes: list[BaseException] = []
        """The error with which the load ended, if any."""
        self._calm = True
        self._at_work = ""
        orders = [] if plan.die_at is None else [plan.die_at]
        self._failpoints = Failpoints(
            orders, strike=lambda order: self.breaking.kill(self._at_work, f"dispatcher.kill at {order.point}")
        )
        agent = working_agent("agent", note=self._note_of_agent, effects=self._effects)
        for name in plan.pace.parts:
            PARTS[name].offer(agent, self._note_of_agent)
        agents = [agent, children_agent(CHILDREN)] if plan.pace.parents else [agent]
        settings = Settings(drain_seconds=DRAIN_SECONDS)
        self.fleet = SimulatedFleet(agents, seed=seed, replicas={agent.name: plan.agents}, settings=settings)
        self.fleet.apart = SUICIDES.name in plan.pace.parts
        self._names = [f"dispatcher-{number + 1}" for number in range(plan.dispatchers)]
        self.fleet.planes = {name: partial(self._dispatcher, name) for name in self._names}
        self._lives: dict[str, int] = dict.fromkeys(self._names, 0)
        self.fleet.paths = {}
        target = Target(self.fleet, self._graph, self._names, self._lives, self.fleet.paths)
        self.breaking = SimulatedNemesis(target, self.notebook.of("chaos"), self._seeded_of, plan.wiped)

    @property
    def faults(self) -> int:
        """The number of faults injected so far."""
        return self.breaking.faults

    def _seeded_of(self, part: str) -> Random:
        """Return a new random generator, seeded by the run's seed and a name: the same name gives the same draws."""
        return Random(f"{self._seed}/{part}")  # noqa: S311 - it is to be foreseen

    def _note_of_agent(self, type_: Type, f: str, key: str = "", *, proc: str, **val: Any) -> None:
        self.notebook.of(proc)(type_, f, key, **val)

    @asynccontextmanager
    async def _dispatcher(
        self, name: str, *, broker: Any, registry: Any, clock: Any, owner: str, evict: Any
    ) -> AsyncIterator[Any]:
        self._lives[name] += 1
        life = f"{name}#{self._lives[name]}"
        note, seeded = self.notebook.of(life), self._seeded_of(life)
        reached = partial(self._reached, name, self._lives[name], seeded)
        store = SimulatedDatabase(self._disk, faults=self._plan.store, seed=seeded.getrandbits(32))
        paths = self.fleet.paths[name]
        paths["store"] = store.path
        async with RecordedDatabase(store, note, reached=reached) as database:
            kind = Capacity if seeded.random() < self._plan.on_record else BacklogCapacity
            approvals = chaos_policy() if self._plan.pace.policed else None
            options = DispatcherOptions(
                shards=self._plan.shards,
                owner=owner,
                capacity=kind(asyncio.get_running_loop().time),
                approvals=approvals,
            )
            recorded: Any = RecordedBroker(broker, note, reached=reached)
            remote: Any = RemotePort(self._graph, paths["redis"], TaskGraphUnavailable)
            graph: Any = RecordedGraph(remote, reached=reached)
            async with running_dispatcher(
                broker=recorded,
                registry=registry,
                clock=clock,
                database=database,
                graph=graph,
                evict=_RecordedEvictor(evict, note),
                options=options,
            ) as running:
                yield running

    # -- faults -----------------------------------------------------------------------------------------

    def _reached(self, name: str, life: int, seeded: Random, point: str) -> None:
        if self._calm or life != self._lives[name]:
            return
        self._at_work = name
        self._failpoints.reached(point)
        if self._plan.die_at is None and seeded.random() < self._plan.die_at_a_call:
            self.breaking.kill(name, f"dispatcher.kill at {point}")

    def _agents_now(self) -> RegistryLook:
        running = {one.id: one.load.status for one in self.fleet.agents if one.state is not State.PAUSED}
        at_work = (name for name, status in running.items() if status not in OUTSIDE)
        return RegistryLook(frozenset(running), frozenset(at_work))

    def _idle_now(self) -> str:
        """Return a sentence that names an agent with a free slot while a task waits; empty when there is none."""
        for level in Priority:
            queue = self.fleet.server.find(routing.task_queue(CAPABILITY, level))
            kept = 0 if level is Priority.P0 else 1
            if queue is None or not queue.stats.messages:
                continue
            for one in self.fleet.agents:
                load = one.load
                well = one.state is State.RUNNING and load.status is not AgentStatus.DRAINING and not load.trouble
                if well and one.name != CHILDREN and load.running + kept < SLOTS:
                    return f"{one.id} had a slot for a {level.value}, after {taken(load)} tasks"
        return ""

    async def run(self) -> None:
        """Run the load with faults; then end these, wait a limited time for begun work, and record the final state."""
        reviving = asyncio.ensure_future(self.breaking.keep_reviving()) if self.fleet.apart else None
        load = ChaosLoad(self.fleet.client, self.notebook.of("client"), self._seeded_of("load"), self._plan.pace)
        working = asyncio.ensure_future(load.keep_coming())
        note = self.notebook.of("chaos")
        looking = asyncio.ensure_future(
            keep_looking(self.fleet.registry, self._agents_now, note, name_of=lambda record: record.agent_id)
        )
        slots = asyncio.ensure_future(keep_looking_at_slots(self._idle_now, note))
        self._calm = False
        async with MemoryBroker(self.fleet.server, name="stranger") as broker:
            kinds = self._plan.kinds if self._plan.die_at is None else ()
            strangers = Strangers(broker, note, self._seeded_of("strangers"))
            await strangers.listen()
            await self.breaking.run(kinds, self._plan.seconds, self._plan.between_seconds, strangers)
        self._calm = True
        self.breaking.revive()
        await asyncio.sleep(self._plan.calm_seconds)
        load.closed.set()
        await asyncio.wait([working], timeout=self._plan.settle_seconds)
        looking.cancel()
        slots.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait([working])
        elif (error := working.exception()) is not None:
            self.crashes.append(error)  # a load that breaks proves nothing
        if reviving is not None:
            reviving.cancel()
        self.breaking.end()
        await self._look_at_what_is_left(note)
        async with SimulatedDatabase(self._disk) as database:
            await read_end(database, self.notebook.entries, self._effects, self.notebook.of("reader"))
        self.entries = merged(self.notebook.entries)

    async def _look_at_what_is_left(self, note: Note) -> None:
        """Wait up to 200 s for empty task queues; record how many messages each has, with the unacknowledged ones."""
        queues = [self.fleet.server.queue(routing.task_queue(CAPABILITY, level)) for level in Priority]
        for _ in range(LEFT_SECONDS):
            if not any(_left(queue) for queue in queues):
                break
            await asyncio.sleep(1.0)
        for queue in queues:
            note(Type.OK, "left", queue.declared.name, messages=_left(queue))


def _left(queue: MemoryQueue) -> int:
    return queue.stats.messages + queue.in_hand
