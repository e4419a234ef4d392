"""A run in one event loop: the real dispatchers, agents and client over the in-memory twins, in virtual time.

The seed decides about everything: whose turn it is, what the store's transactions meet, which process dies where, when
Redis and the broker are gone. So a seed that broke a promise breaks it again, at the same step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from coditect.errors import NotFound
from coditect.testing import TestFleet
from dispatcher.chaos.history import Entry, Notebook, Type, merged
from dispatcher.chaos.invariants import judge
from dispatcher.chaos.judgement import Judgement
from dispatcher.chaos.load import Load, Pace
from dispatcher.chaos.reader import read_end
from dispatcher.chaos.witness import WitnessedBroker, WitnessedDatabase
from dispatcher.chaos.work import EffectTable, working_agent
from dispatcher.layers.ledger.book import Planted
from dispatcher.program import Options, running_dispatcher
from dispatcher.store.memory import Disk, Faults, MemoryDatabase

STORE_FAULTS = Faults(
    conflict=0.02, unknown_committed=0.01, unknown_lost=0.01, too_old=0.005, latency_seconds=(0.0002, 0.004)
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one seed is played."""

    seconds: float = 6.0
    """Of virtual time, with faults."""
    settle_seconds: float = 600.0
    """How long what was begun may take after the last fault."""
    dispatchers: int = 2
    agents: int = 3
    shards: int = 2
    between_seconds: tuple[float, float] = (0.2, 1.2)
    """Between two faults."""
    die_at_a_call: float = 0.004
    """The share of a dispatcher's calls to its ports at which it is killed."""
    planted: Planted = field(default_factory=Planted)
    pace: Pace = Pace(workflows=2, tasks=2, width=3, milliseconds=(5, 1_500), wait_seconds=500.0)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of one seed."""

    seed: int
    judgements: tuple[Judgement, ...]
    entries: tuple[Entry, ...]
    faults: int

    @property
    def violations(self) -> tuple[str, ...]:
        """Everything that broke a promise."""
        return tuple(f"{one.invariant}: {told}" for one in self.judgements for told in one.violations)


def play(seed: int, plan: Plan | None = None) -> Played:
    """Plays one seed on a loop of its own; deterministic but for what reads the real clock."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
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


class Fleet(TestFleet):
    """A fleet with dispatchers of its own."""

    planes: Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        return self.planes


class Scene:
    """One seed's fleet, and what is done to it."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self._plan = plan
        self._seed = seed
        self._chance = Random(f"{seed}/chaos")  # noqa: S311 - it is to be foreseen
        self.notebook = Notebook(lambda: asyncio.get_running_loop().time())
        self._effects = EffectTable()
        self._disk = Disk()
        self.entries: list[Entry] = []
        self.faults = 0
        self._calm = self._broker_away = False
        agent = working_agent("agent", note=self._note_of_agent, effects=self._effects, slots=4)
        self.fleet = Fleet([agent], seed=seed, replicas=plan.agents)
        self._names = [f"dispatcher-{number + 1}" for number in range(plan.dispatchers)]
        self.fleet.planes = {name: partial(self._dispatcher, name) for name in self._names}
        self._lives: dict[str, int] = dict.fromkeys(self._names, 0)

    def _note_of_agent(self, type_: Type, f: str, key: str = "", *, proc: str, **val: Any) -> None:
        self.notebook.of(proc)(type_, f, key, **val)

    @asynccontextmanager
    async def _dispatcher(self, name: str, *, broker: Any, registry: Any, clock: Any) -> AsyncIterator[Any]:
        self._lives[name] += 1
        note = self.notebook.of(f"{name}#{self._lives[name]}")
        reached = partial(self._reached, name, self._lives[name])
        store = MemoryDatabase(self._disk, faults=STORE_FAULTS, seed=self._chance.getrandbits(32))
        async with WitnessedDatabase(store, note, reached=reached) as database:
            options = Options(shards=self._plan.shards, planted=self._plan.planted)
            witnessed: Any = WitnessedBroker(broker, note, reached=reached)
            async with running_dispatcher(
                broker=witnessed, registry=registry, clock=clock, database=database, options=options
            ) as running:
                yield running

    # -- faults -----------------------------------------------------------------------------------------

    def _reached(self, name: str, life: int, point: str) -> None:
        if not self._calm and life == self._lives[name] and self._chance.random() < self._plan.die_at_a_call:
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
        others = (self._wipe_redis, self._redis_away, self._cut, self._restart_broker)
        end = asyncio.get_running_loop().time() + self._plan.seconds
        async with asyncio.TaskGroup() as group:
            while (now := asyncio.get_running_loop().time()) < end:
                pause = min(self._chance.uniform(*self._plan.between_seconds), end - now)
                await asyncio.sleep(pause)
                for _ in range(self._chance.randrange(20)):
                    await asyncio.sleep(0)  # somewhere within the instant
                await self._revive()
                group.create_task(self._chance.choice(acts * 2 + others)())

    async def _revive(self) -> None:
        """Whoever died is there again."""
        living = {member.name for member in self.fleet.processes if member.lives}
        for name in self._names:
            if name not in living:
                await self.fleet.restart(name)
                self._tell(Type.OK, "kill", name)
        missing = self._plan.agents - len(self.fleet.agents)
        if missing > 0:
            await self.fleet.restart("agent") if missing == self._plan.agents else await self._one_more(missing)

    async def _one_more(self, many: int) -> None:
        for member in [
            one for one in self.fleet.processes if one.name == "agent" and not one.lives and not one.replaced
        ]:
            if many <= 0:
                break
            await self.fleet.restart(member.id)
            self._tell(Type.OK, "kill", member.id)
            many -= 1

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
        self._tell(Type.OK, "wipe", "redis")

    async def _redis_away(self) -> None:
        self.faults += 1
        self._tell(Type.INVOKE, "kill", "redis", kind="redis.kill")
        self.fleet.registry.failing = True
        await asyncio.sleep(self._chance.uniform(0.1, 3.0))
        self.fleet.registry.failing = False
        self._tell(Type.OK, "kill", "redis")

    async def _cut(self) -> None:
        self.faults += 1
        self._tell(Type.INVOKE, "cut", "broker", kind="broker.cut")
        self.fleet.drop_connections()
        self._tell(Type.OK, "cut", "broker")

    async def _restart_broker(self) -> None:
        if self._broker_away:
            return
        self.faults += 1
        self._broker_away = True
        self._tell(Type.INVOKE, "kill", "broker", kind="broker.kill")
        self.fleet.server.stop()
        await asyncio.sleep(self._chance.uniform(0.1, 3.0))
        self.fleet.server.start()
        self._broker_away = False
        self._tell(Type.OK, "kill", "broker")

    # -- the run ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The load and the faults; then everybody is well, and what was begun comes to its end."""
        load = Load(self.fleet.client, self.notebook.of("client"), self._chance, self._plan.pace)
        working = asyncio.ensure_future(load.keep_coming())
        await self._break()
        self._calm = True
        load.closed.set()
        await self._revive()
        await asyncio.wait([working], timeout=self._plan.settle_seconds)
        if not working.done():
            working.cancel()
            await asyncio.wait([working])
        async with MemoryDatabase(self._disk) as database:
            await read_end(database, self.notebook.entries, self._effects, self.notebook.of("reader"))
        self.entries = merged(self.notebook.entries)


def summary(played: Sequence[Played]) -> str:
    """How much was played, and what broke, for a person."""
    broken = [one for one in played if one.violations]
    faults = sum(one.faults for one in played)
    told = [f"{len(played)} seeds, {faults} faults, {len(broken)} of them broke a promise"]
    told += [f"  seed {one.seed}: {one.violations[0]}" for one in broken]
    return "\n".join(told)
