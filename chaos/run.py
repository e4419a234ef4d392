"""A run of `python -m chaos`: private servers, real processes, a load, faults by the seed, and the verdict."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaos.agent import EFFECTS
from chaos.checks.check import CheckResult, lines
from chaos.checks.coverage import Toll, toll
from chaos.checks.history_index import HistoryIndex
from chaos.checks.invariants import judge
from chaos.checks.recovery import APART_SECONDS
from chaos.faults import schedule as faults
from chaos.faults.strangers import Strangers
from chaos.history import SUFFIX, Scribe, Type, read_histories
from chaos.load import policy
from chaos.load.pace import Pace
from chaos.load.parts.table import PARTS
from chaos.load.work import CAPABILITY, EffectFolder
from chaos.load.workload import ChaosLoad
from chaos.looking import keep_looking
from chaos.mutants.table import read_mutant
from chaos.nemesis import Nemesis
from chaos.reader import read_end
from chaos.testbed import ChaosStore, ChaosTestbed, StoreKind, private_store, private_testbed
from coditect.broker.rabbitmq import AmqpBroker
from coditect.client.client import Client
from coditect.local.state import make_private
from coditect.model.capability import Priority
from coditect.registry.redis import RedisRegistry
from coditect.settings.settings import Settings
from coditect.wire import routing
from dispatcher.program import open_store

DRAIN_SECONDS = 1
"""How long an agent that a task asked to end lets others run: few tasks are to wait for that."""
CALM_SECONDS = 15.0
"""The time after the last fault in which the load goes on, for promises that are judged without faults."""
SETTLE_SECONDS = 120.0
"""The time after the load's close in which begun work must end; work that has not ended then is lost."""
PACE = Pace(
    workflows=6,
    tasks=12,
    width=4,
    milliseconds=(1, 30_000),
    long=0.003,
    locks=6,
    keyed=6,
    handed=4,
    policed=2,
    calls=6,
    schedules=1,
    parts=dict.fromkeys(PARTS, 1),
    wait_seconds=86_400.0,
    task_seconds=60.0,
)
"""The load of a run with real processes.

Tasks over 30 s are few, since one whose agents die again and again keeps a slot for minutes. Workflows are waited for
until the run ends, `SETTLE_SECONDS` after its last fault: on a busy machine the faults take longer than they should.
"""
PROGRESS_SECONDS = 5.0
PROVING_SECONDS = 60.0
"""The length from which a run with all kinds of faults must have a case for every check."""
MAY_BE_IDLE = frozenset({"recovered in time", "no idle slot"})
"""The checks that may find no case even in a run that is long and varied enough to prove something.

The only fault whose effect is measured may find all slots taken; free slots are looked at only in the simulation.
"""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunOrder:
    """The parameters of a run: seed, length, folder, processes, kinds of faults, mutant, store and load."""

    seed: int
    seconds: float
    folder: Path
    agents: int = 4
    dispatchers: int = 2
    kinds: Sequence[str] = tuple(faults.KINDS)
    mutant: str = ""
    """The name of the mutant in every process; empty for none."""
    store: StoreKind = StoreKind.SQLITE
    pace: Pace = PACE


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """The verdict on a run: the checks of the promises, the coverage of faults, and the amount of work."""

    order: RunOrder
    checks: tuple[CheckResult, ...]
    toll: Toll
    work: int
    """The number of accepted workflows and tasks."""
    nodes: int
    executions: int

    @property
    def kept(self) -> bool:
        """Tell whether no promise was broken in the run."""
        return all(one.passed for one in self.checks)

    @property
    def caught(self) -> bool:
        """Tell whether the invariant that the run's mutant should violate was violated."""
        expected = read_mutant(self.order.mutant).caught_by if self.order.mutant else None
        return any(not one.passed and one.invariant == expected for one in self.checks)

    @property
    def passed(self) -> bool:
        """Tell whether every promise was kept, and nothing, such as too few faults, makes the run prove too little."""
        return self.kept and not self.objections

    @property
    def objections(self) -> tuple[str, ...]:
        """The reasons why the run proves nothing, or not enough, as text; empty when there are none."""
        every = faults.kinds_with(foundationdb=self.order.store is StoreKind.FOUNDATIONDB)
        if self.order.seconds < PROVING_SECONDS or set(self.order.kinds) < set(every):
            return self.toll.objections
        judged = [one for one in self.checks if one.checked or one.invariant in MAY_BE_IDLE]
        idle = tuple(f"{one.invariant} had nothing to check" for one in self.checks if one not in judged)
        return self.toll.objections + idle

    def lines(self) -> list[str]:
        """Return the verdict as lines for a person."""
        told = [
            f"seed {self.order.seed}: {self.work} workflows and tasks, {self.nodes} nodes, {self.executions} executions"
        ]
        told += [*self.toll.lines(), *lines(self.checks)]
        told += [f"proves nothing: {objection}" for objection in self.objections]
        return told

    def as_json(self) -> dict[str, object]:
        """Return the verdict as JSON values, for programs."""
        return {
            "seed": self.order.seed,
            "passed": self.passed,
            "mutant": self.order.mutant,
            "caught": self.caught,
            "work": self.work,
            "nodes": self.nodes,
            "executions": self.executions,
            "faults": {
                one.kind: {"faults": one.faults, "hitting": one.hitting, "in_flight": one.in_flight}
                for one in self.toll.kinds
            },
            "faults_per_second": round(self.toll.per_second, 3),
            "objections": list(self.objections),
            "invariants": [
                {
                    "name": one.invariant,
                    "passed": one.passed,
                    "checked": one.checked,
                    "bound": one.bound,
                    "violations": list(one.violations[:100]),
                }
                for one in self.checks
            ],
        }


async def run(order: RunOrder, *, environ: Mapping[str, str] | None = None, say: Say = lambda line: None) -> RunVerdict:
    """Run a private fleet with a load and faults, and judge by its history whether each promise was kept.

    All files lie below the order's folder, which is emptied first, and no process outlives the run.

    Raises:
        MissingServer, StartFailed, AlreadyUp: when the servers or processes cannot start.
        SetupError: when there is no such mutant.
    """
    if order.mutant:
        read_mutant(order.mutant)
    history = order.folder / "history"
    shutil.rmtree(order.folder, ignore_errors=True)
    make_private(order.folder)
    scribe = Scribe(history / f"chaos{SUFFIX}", "chaos")
    environ = environ or os.environ
    approvals = order.folder / "approvals.yaml"
    approvals.write_text(policy.TEXT)
    async with private_store(order.store, order.folder, environ=environ) as store:
        async with private_testbed(
            order.folder,
            history,
            environ=environ,
            processes={"dispatcher": order.dispatchers, "agent": order.agents},
            settings={"CODITECT_STORE_URL": store.url, "CODITECT_LOG_LEVEL": "WARNING"}
            | {"CODITECT_APPROVAL_POLICY": str(approvals), "CODITECT_DRAIN_SECONDS": str(DRAIN_SECONDS)},
            mutant=order.mutant,
        ) as testbed:
            await testbed.start()
            say("everything is up; the faults begin")
            await _play(order, testbed, store, scribe, say)
        scribe.close()
        return await _judged(order, store, history)


async def _play(order: RunOrder, testbed: ChaosTestbed, store: ChaosStore, scribe: Scribe, say: Say) -> None:
    """Run the load and inject the faults; then wait up to 120 s for begun work, and record what the queues hold."""
    settings = Settings(amqp_url=testbed.servers.amqp_url, redis_url=testbed.servers.redis_url)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.connecting(settings))
        registry = await stack.enter_async_context(RedisRegistry(settings.redis_url))
        broker = await stack.enter_async_context(AmqpBroker(settings.amqp_url, name="chaos"))
        load = ChaosLoad(client, scribe.note, Random(f"{order.seed}/load"), order.pace)  # noqa: S311 - to be foreseen
        working = asyncio.create_task(load.keep_coming())
        looking = asyncio.create_task(keep_looking(registry, testbed.agents_now, scribe.note, name_of=testbed.life_of))
        telling = asyncio.create_task(_tell(load, say))
        strangers = Strangers(broker, scribe.note, Random(f"{order.seed}/strangers"))  # noqa: S311 - it is to be foreseen
        await strangers.listen()
        breaking = Nemesis(testbed, scribe.note, strangers, store.cluster)
        await stack.enter_async_context(breaking.keeping())
        await breaking.run(faults.schedule(order.seed, order.seconds, order.kinds))
        await testbed.all_ready()
        await asyncio.sleep(APART_SECONDS)
        await breaking.run(faults.lone(order.seed, order.kinds))
        await testbed.all_ready()
        say("the faults are over; the load goes on for a while")
        await asyncio.sleep(CALM_SECONDS)
        load.closed.set()
        say("what was begun comes to its end")
        await asyncio.wait([working], timeout=SETTLE_SECONDS)
        for task in (working, looking, telling):
            task.cancel()
        await asyncio.wait([working, looking, telling])
        for queue in (routing.task_queue(CAPABILITY, level) for level in Priority):
            if (found := await broker.stats(queue)) is not None:
                scribe.note(Type.OK, "left", queue, messages=found.messages)


async def _tell(load: ChaosLoad, say: Say) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        say(f"{load.begun} begun, {load.ended} ended")


async def _judged(order: RunOrder, store: ChaosStore, history: Path) -> RunVerdict:
    entries = read_histories(history)
    scribe = Scribe(history / f"reader{SUFFIX}", "reader")
    async with open_store(Settings(store_url=store.url)) as database:
        await read_end(database, entries, EffectFolder(history / EFFECTS), scribe.note)
    scribe.close()
    entries = read_histories(history)
    index = HistoryIndex(entries)
    checks = tuple(judge(entries))
    instants = [fault.begun for fault in index.faults]
    spread = instants[-1] - instants[0] if instants else 0.0
    counted = toll(index, order.kinds, seconds=max(order.seconds, spread))
    return RunVerdict(order, checks, counted, len(index.accepted), len(index.nodes), len(index.of("execute")))
