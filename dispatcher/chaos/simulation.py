"""A run in one event loop: the real dispatchers, agents and client over the in-memory twins, in virtual time.

The seed decides about everything: whose turn it is, what the store's transactions meet, which process dies where, when
Redis and the broker are gone. So a seed that broke a promise breaks it again, at the same step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from coditect.broker.memory import MemoryBroker
from coditect.errors import NotFound
from coditect.failpoints import Failpoints, Order
from coditect.loop import plain_runner
from coditect.model.registration import AgentStatus
from coditect.testing import TestFleet
from coditect.testing.member import State
from dispatcher.chaos.invariants import judge
from dispatcher.chaos.judgement import Judgement
from dispatcher.chaos.load import Load
from dispatcher.chaos.looking import Crew, keep_looking
from dispatcher.chaos.reader import read_end
from dispatcher.chaos.shapes import Pace
from dispatcher.chaos.work import EffectTable, working_agent
from dispatcher.graph.memory import MemoryTaskGraph
from dispatcher.ports import Ways
from dispatcher.program import Options, running_dispatcher
from dispatcher.store.memory import Disk, Faults, MemoryDatabase
from dispatcher.witness.history import Entry, Notebook, Type, merged
from dispatcher.witness.ports import WitnessedBroker, WitnessedDatabase, WitnessedGraph

STORE_FAULTS = Faults(
    conflict=0.02, unknown_committed=0.01, unknown_lost=0.01, too_old=0.005, latency_seconds=(0.0002, 0.004)
)


PACE = Pace(workflows=2, tasks=2, width=3, milliseconds=(5, 1_500), wait_seconds=500.0, task_seconds=40.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one seed is played."""

    seconds: float = 6.0
    """Of virtual time, with faults."""
    calm_seconds: float = 0.0
    """So long after the last fault the load goes on: in 8 there is something for what is promised of calm times."""
    settle_seconds: float = 600.0
    """How long what was begun may take after that."""
    dispatchers: int = 2
    agents: int = 3
    shards: int = 2
    between_seconds: tuple[float, float] = (0.2, 1.2)
    """Between two faults."""
    die_at_a_call: float = 0.004
    """The share of a dispatcher's calls to its ports at which it is killed."""
    wiped: float = 0.4
    """The share of the broker's deaths after which its data is gone."""
    die_at: Order | None = None
    """A failpoint at which a dispatcher is killed, whichever of them reaches it; then nothing else is broken."""
    on_record: float = 0.5
    """The share of dispatchers that claim what a result made ready; with the others RQ has to propose it."""
    pace: Pace = PACE


MUTATED = Plan(settle_seconds=120.0)
"""How a seed is played that has a mutant in it: that may keep work from ending, and is not waited for so long."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of one seed."""

    seed: int
    judgements: tuple[Judgement, ...]
    entries: tuple[Entry, ...]
    faults: int

    @property
    def kept(self) -> bool:
        """Whether no promise was broken."""
        return not self.violations

    passed = kept
    caught = False
    """A seed without a mutant has none to catch."""

    @property
    def work(self) -> int:
        """Accepted workflows and tasks."""
        return sum(one.f == "accept" and one.type is Type.OK for one in self.entries)

    def lines(self) -> list[str]:
        """For a person."""
        word = "pass" if self.kept else "FAIL"
        told = f"{word}  seed {self.seed}: {self.work} workflows and tasks, {self.faults} faults"
        broken = [one for one in self.judgements if not one.passed]
        return [told, *(f"        {one.invariant} ({len(one.violations)}): {one.violations[0]}" for one in broken)]

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "seed": self.seed,
            "passed": self.kept,
            "faults": self.faults,
            "violations": list(self.violations[:100]),
        }

    @property
    def violations(self) -> tuple[str, ...]:
        """Everything that broke a promise."""
        return tuple(f"{one.invariant}: {told}" for one in self.judgements for told in one.violations)


def play(seed: int, plan: Plan | None = None) -> Played:
    """Plays one seed on a loop of its own; deterministic but for what reads the real clock."""
    with plain_runner() as runner:
        return runner.run(_play(seed, plan or Plan()))


async def _play(seed: int, plan: Plan) -> Played:
    scene = Scene(seed, plan)
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # everything breaks, and each time somebody says so
    try:
        async with scene.fleet:
            await scene.run()
            scene.fleet.forgive_crashes()
    finally:
        logging.disable(before)
    return Played(seed, tuple(judge(scene.entries)), tuple(scene.entries), scene.faults)


class SimulatedFleet(TestFleet):
    """A fleet with dispatchers of its own."""

    planes: Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        return self.planes

    def _look_for_lost_errors(self) -> None:
        """Whoever is killed on the way leaves errors that nobody awaits."""


class Scene:
    """One seed's fleet, and what is done to it."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self._plan = plan
        self._seed = seed
        self._chance = Random(f"{seed}/chaos")  # noqa: S311 - it is to be foreseen
        self.notebook = Notebook(lambda: asyncio.get_running_loop().time())
        self._effects = EffectTable()
        self._disk = Disk()
        self._graph = MemoryTaskGraph()
        self.entries: list[Entry] = []
        self.faults = 0
        self._calm, self._broker_away = True, False
        self._starting: list[asyncio.Task[Any]] = []
        self._at_work = ""
        orders = [] if plan.die_at is None else [plan.die_at]
        self._failpoints = Failpoints(
            orders, strike=lambda order: self._kill(self._at_work, f"dispatcher.kill at {order.point}")
        )
        agent = working_agent("agent", note=self._note_of_agent, effects=self._effects, slots=4)
        self.fleet = SimulatedFleet([agent], seed=seed, replicas=plan.agents)
        self._names = [f"dispatcher-{number + 1}" for number in range(plan.dispatchers)]
        self.fleet.planes = {name: partial(self._dispatcher, name) for name in self._names}
        self._lives: dict[str, int] = dict.fromkeys(self._names, 0)
        self._ways: dict[str, tuple[MemoryBroker, MemoryDatabase]] = {}

    def _note_of_agent(self, type_: Type, f: str, key: str = "", *, proc: str, **val: Any) -> None:
        self.notebook.of(proc)(type_, f, key, **val)

    @asynccontextmanager
    async def _dispatcher(
        self, name: str, *, broker: Any, registry: Any, clock: Any, owner: str, evict: Any
    ) -> AsyncIterator[Any]:
        self._lives[name] += 1
        note = self.notebook.of(f"{name}#{self._lives[name]}")
        reached = partial(self._reached, name, self._lives[name])
        store = MemoryDatabase(self._disk, faults=STORE_FAULTS, seed=self._chance.getrandbits(32))
        self._ways[name] = (broker, store)
        async with WitnessedDatabase(store, note, reached=reached) as database:
            ways = Ways(on_record=self._chance.random() < self._plan.on_record)
            options = Options(shards=self._plan.shards, owner=owner, ways=ways)
            witnessed: Any = WitnessedBroker(broker, note, reached=reached)
            graph: Any = WitnessedGraph(self._graph, reached=reached)
            async with running_dispatcher(
                broker=witnessed,
                registry=registry,
                clock=clock,
                database=database,
                graph=graph,
                evict=evict,
                options=options,
            ) as running:
                yield running

    # -- faults -----------------------------------------------------------------------------------------

    def _reached(self, name: str, life: int, point: str) -> None:
        if self._calm or life != self._lives[name]:
            return
        self._at_work = name
        self._failpoints.reached(point)
        if self._plan.die_at is None and self._chance.random() < self._plan.die_at_a_call:
            self._kill(name, f"dispatcher.kill at {point}")

    def _kill(self, name: str, kind: str) -> None:
        with suppress(NotFound):
            for member in self.fleet.kill(name):
                self._tell(Type.INVOKE, "kill", self._proc(member.id, member.name), kind=kind)
                self.faults += 1
                if member.name == name:
                    self._lives[name] += 1

    def _tell(self, type_: Type, f: str, key: str, **val: Any) -> None:
        self.notebook.of("chaos")(type_, f, key, **val)

    @staticmethod
    def _proc(id_: str, name: str) -> str:
        return id_ if name == "agent" else name

    async def _break(self) -> None:
        """One fault after the other, until the time is over."""
        acts = (self._kill_agent, self._stop_agent, self._kill_dispatcher, self._stop_dispatcher)
        others = (self._wipe_redis, self._redis_away, self._cut, self._part, self._restart_broker)
        now = asyncio.get_running_loop().time
        end = now() + self._plan.seconds
        async with asyncio.TaskGroup() as group:
            while now() + (pause := self._chance.uniform(*self._plan.between_seconds)) < end:
                await asyncio.sleep(pause)
                for _ in range(self._chance.randrange(20)):
                    await asyncio.sleep(0)  # somewhere within the instant
                self._revive()
                if self._plan.die_at is None:
                    group.create_task(self._chance.choice(acts * 2 + others)())

    def _revive(self) -> None:
        """Whoever died is started again; it may die in that, too."""
        living = {member.name for member in self.fleet.processes if member.lives}
        for name in self._names:
            if name not in living:
                self._restart(name, name)
        dead = [one for one in self.fleet.processes if one.name == "agent" and not one.lives and not one.replaced]
        for member in dead:
            self._restart(member.id, member.id)

    def _restart(self, target: str, post: str) -> None:
        self._starting.append(asyncio.ensure_future(self.fleet.restart(target)))
        self._tell(Type.OK, "kill", post)

    async def _kill_agent(self) -> None:
        if self.fleet.agents:
            self._kill(self._chance.choice(self.fleet.agents).id, "agent.kill")

    async def _stop_agent(self) -> None:
        if self.fleet.agents:
            await self._stop(self._chance.choice(self.fleet.agents).id, "agent.stop")

    async def _kill_dispatcher(self) -> None:
        self._kill(self._chance.choice(self._names), "dispatcher.kill")

    async def _stop_dispatcher(self) -> None:
        await self._stop(self._chance.choice(self._names), "dispatcher.stop")

    async def _stop(self, target: str, kind: str) -> None:
        with suppress(NotFound):
            for member in self.fleet.pause(target):
                proc = self._proc(member.id, member.name)
                self.faults += 1
                self._tell(Type.INVOKE, "stop", proc, kind=kind)
                await asyncio.sleep(self._chance.uniform(0.5, 8.0))
                with suppress(NotFound):
                    self.fleet.resume(member.id)
                self._tell(Type.OK, "stop", proc)

    async def _wipe_redis(self) -> None:
        self.faults += 1
        self._tell(Type.INVOKE, "wipe", "redis", kind="redis.wipe")
        self.fleet.wipe_registry()
        self._graph.wipe()
        self._tell(Type.OK, "wipe", "redis")

    async def _redis_away(self) -> None:
        self.faults += 1
        self._tell(Type.INVOKE, "kill", "redis", kind="redis.kill")
        self.fleet.registry.failing = self._graph.failing = True
        await asyncio.sleep(self._chance.uniform(0.1, 3.0))
        self.fleet.registry.failing = self._graph.failing = False
        self._tell(Type.OK, "kill", "redis")

    async def _cut(self) -> None:
        self.faults += 1
        self._tell(Type.INVOKE, "cut", "broker", kind="broker.cut")
        self.fleet.drop_connections()
        self._tell(Type.OK, "cut", "broker")

    async def _part(self) -> None:
        """One dispatcher has no way to the broker, or to the store, for a while; everybody else has."""
        name = self._chance.choice(self._names)
        cut_off = self._chance.choice(self._ways[name])
        self.faults += 1
        self._tell(Type.INVOKE, "part", name, kind="dispatcher.part")
        cut_off.cut_off()
        await asyncio.sleep(self._chance.uniform(0.5, 8.0))
        cut_off.heal()
        self._tell(Type.OK, "part", name)

    async def _restart_broker(self) -> None:
        if self._broker_away:
            return
        self.faults += 1
        self._broker_away = True
        wiped = self._chance.random() < self._plan.wiped
        act = "wipe" if wiped else "kill"
        self._tell(Type.INVOKE, act, "broker", kind=f"broker.{act}")
        self.fleet.server.stop()
        await asyncio.sleep(self._chance.uniform(0.1, 3.0))
        self.fleet.server.start(lose_messages=wiped)
        self._broker_away = False
        self._tell(Type.OK, act, "broker")

    def _crew(self) -> Crew:
        running = {one.id: one.load.status for one in self.fleet.agents if one.state is not State.PAUSED}
        at_work = (name for name, status in running.items() if status is not AgentStatus.STARTING)
        return Crew(frozenset(running), frozenset(at_work))

    # -- the run ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The load and the faults; then everybody is well, and what was begun comes to its end."""
        load = Load(self.fleet.client, self.notebook.of("client"), self._chance, self._plan.pace)
        working = asyncio.ensure_future(load.keep_coming())
        note = self.notebook.of("chaos")
        looking = asyncio.ensure_future(
            keep_looking(self.fleet.registry, self._crew, note, name_of=lambda record: record.agent_id)
        )
        self._calm = False
        await self._break()
        self._calm = True
        self._revive()
        await asyncio.sleep(self._plan.calm_seconds)
        load.closed.set()
        await asyncio.wait([working], timeout=self._plan.settle_seconds)
        looking.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait([working])
        for starting in self._starting:
            starting.cancel()  # those who were killed before they were ready
        async with MemoryDatabase(self._disk) as database:
            await read_end(database, self.notebook.entries, self._effects, self.notebook.of("reader"))
        self.entries = merged(self.notebook.entries)
