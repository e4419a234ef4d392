"""Tasks of very different lengths in the same queues, in virtual time: who gets them, and how often they go back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, cast

import pytest

from coditect import Agent, Context, Priority
from coditect.agent.execution import Execution
from coditect.agent.intake import QUICK_SECONDS, QueueCredit
from coditect.broker.memory import MemoryBroker
from coditect.broker.port import Consumer
from coditect.model.task import Task
from coditect.testing import TestFleet
from coditect.wire import routing

GATE = -1.0
"""Instead of seconds that a task awaits another agent's, without a slot: until the gate opens."""
MOMENT = 0.1
"""Seconds for which a slot may be idle beside work, and for which work may wait for an idle slot."""


@dataclass(slots=True)
class Run:
    """One execution."""

    name: str
    agent: str
    level: Priority
    began: float
    ended: float = inf
    """When it gave its slot back: it ended, began to await, or its agent was killed."""
    over: float = inf
    """The same, its wait and what it does after that included."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """One task."""

    name: str
    capability: str
    level: Priority
    at: float


@dataclass(frozen=True, slots=True)
class Staff:
    """One agent process: what it offers, on how many slots, and until when it lives."""

    capabilities: frozenset[str]
    slots: int
    until: float = inf

    def startable(self, busy: Counter[Priority], level: Priority) -> int:
        """As `Slots.startable`."""
        kept = 1 if level is not Priority.P0 and self.slots > 1 and not busy[Priority.P0] else 0
        return self.slots - busy.total() - kept


@dataclass
class Works:
    """What was submitted and started. A task is its name, how many seconds it takes, and how many it then awaits."""

    runs: list[Run] = field(default_factory=list)
    submitted: list[Submitted] = field(default_factory=list)
    staff: dict[str, Staff] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    answered: dict[str, float] = field(default_factory=dict)
    """When what a task awaited ended."""

    def agent(self, name: str, capabilities: Iterable[str], *, slots: int, timeout: str = "10m") -> Agent:
        agent = Agent(name, slots=slots)
        for capability in capabilities:
            agent.capability(capability, timeout=timeout)(self._work)
        return agent

    async def _work(self, task: tuple[str, float, float], ctx: Context) -> None:
        """One that awaits works as long again when it goes on."""
        name, seconds, awaits = task
        run = await self._ran(name, seconds, ctx)
        if awaits:
            await ctx.request("gate.open", (name, awaits), timeout="20m")
            await self._ran(_resumed(name), seconds, ctx)
        run.over = asyncio.get_running_loop().time()

    async def _ran(self, name: str, seconds: float, ctx: Context) -> Run:
        loop = asyncio.get_running_loop()
        run = Run(name, ctx.agent_id, ctx.priority, loop.time())
        self.runs.append(run)
        await asyncio.sleep(seconds)
        run.ended = loop.time()
        return run

    def keeper(self) -> Agent:
        """Whom the tasks that await are awaiting."""
        agent = Agent("keeper", slots=1_000)

        @agent.capability("gate.open", timeout="10m")
        async def wait(task: tuple[str, float]) -> None:
            name, seconds = task
            await (self.gate.wait() if seconds == GATE else asyncio.sleep(seconds))
            self.answered[name] = asyncio.get_running_loop().time()

        return agent

    async def add(self, fleet: TestFleet, agent: Agent) -> str:
        """Starts a process of it; its id."""
        [process] = await fleet.add(agent)
        self.staff[process.id] = Staff(frozenset(one.name for one in agent.capabilities), agent.slots)
        return process.id

    def kill(self, fleet: TestFleet, agent_id: str) -> None:
        """Ends a process; what it ran has ended for it."""
        fleet.kill(agent_id)
        now = fleet.elapsed_seconds
        self.staff[agent_id] = replace(self.staff[agent_id], until=now)
        for run in self.runs:
            if run.agent == agent_id:
                run.ended, run.over = min(run.ended, now), min(run.over, now)

    async def submit(
        self,
        fleet: TestFleet,
        capability: str,
        seconds: float,
        level: Priority = Priority.P1,
        *,
        awaits: float = 0,
        **how: Any,
    ) -> asyncio.Future[None]:
        name = f"{capability} {level.value} {len(self.submitted)}"
        self.submitted.append(Submitted(name, capability, level, fleet.elapsed_seconds))
        handle = await fleet.submit(capability, (name, seconds, awaits), priority=level, **how)
        return asyncio.ensure_future(handle.result(timeout="6d"))

    # -- what is to be proven ---------------------------------------------------------------------------

    def waits(self) -> list[tuple[Submitted, float, float, str]]:
        """When which task waited, and for whom: until it began, or elsewhere after a kill, and until it went on."""
        found = []
        for task in self.submitted:
            runs = [run for run in self.runs if run.name == task.name]
            since = [task.at, *(run.over for run in runs)]
            found += [(task, start, run.began, "") for start, run in zip(since, runs, strict=False)]
            for again in (run for run in self.runs if run.name == _resumed(task.name)):
                asked = max(run.ended for run in runs if run.agent == again.agent and run.ended <= again.began)
                found.append((task, max(asked, self.answered[task.name]), again.began, again.agent))
        return found

    def idle(self, agent_id: str, level: Priority) -> list[tuple[float, float]]:
        """When something of this level could have started there."""
        staff = self.staff[agent_id]
        runs = [run for run in self.runs if run.agent == agent_id]
        changes = sorted([(run.began, 1, run.level) for run in runs] + [(run.ended, -1, run.level) for run in runs])
        busy: Counter[Priority] = Counter()
        spans, since = [], 0.0
        for at, step, its_level in [*changes, (staff.until, 0, level)]:
            if at > since and staff.startable(busy, level) > 0:
                spans.append((since, at))
            busy[its_level] += step
            since = max(since, at)
        return spans

    def idle_beside_work(self, moment: float = MOMENT) -> list[str]:
        """Which tasks waited for more than a moment, in hand or in their queue, while a slot for them was idle."""
        found = []
        spans = {(one, level): self.idle(one, level) for one in self.staff for level in Priority}
        for task, since, until, only in self.waits():
            offering = [one for one, staff in self.staff.items() if task.capability in staff.capabilities]
            for agent_id in [only] if only else offering:
                for start, end in spans[agent_id, task.level]:
                    if min(end, until) - max(start, since) > moment:
                        found.append(f"{task.name} from {max(start, since):.3f} to {min(end, until):.3f}: {agent_id}")
        return found

    def late_urgent(self) -> list[str]:
        """Which P0 tasks waited for more than the first slot that freed, though no other P0 task was there."""
        urgent = [(task, since, until) for task, since, until, _ in self.waits() if task.level is Priority.P0]
        there = [(since, until) for _, since, until in urgent]
        there += [(run.began, run.over) for run in self.runs if run.level is Priority.P0]
        found = []
        for task, since, until in urgent:
            if sum(start <= until and since < end for start, end in there) > 2:  # itself, waiting and then running
                continue
            ends = [
                run.ended
                for run in self.runs
                if task.capability in self.staff[run.agent].capabilities
                and since < run.ended < self.staff[run.agent].until
            ]
            if until > min(ends, default=inf) + MOMENT:
                found.append(f"{task.name} from {since:.3f} to {until:.3f}, a slot was free at {min(ends):.3f}")
        return found


def _resumed(name: str) -> str:
    """What a task that awaited does afterwards."""
    return f"{name}, resumed"


MINUTES, HALF_AN_HOUR = 2.6, 3.26
"""The longest that is drawn, in powers of ten of seconds."""


async def test_task_behind_a_long_one_is_not_worn_out_by_hand_backs(hand_backs: Counter[str]) -> None:
    """One slot: 60 s, then 175 s, which is within three times the mean; the third waits for both."""
    works = Works()
    async with TestFleet() as fleet:
        await works.add(fleet, works.agent("one", ["long.work"], slots=1))
        results = [await works.submit(fleet, "long.work", seconds) for seconds in (60, 175, 1)]

        await asyncio.gather(*results)

        assert fleet.elapsed_seconds == pytest.approx(236, abs=1)
    assert max(hand_backs.values(), default=0) <= 3
    assert works.idle_beside_work() == []


async def test_two_minute_tasks_on_a_full_fleet_stay_where_they_are(hand_backs: Counter[str]) -> None:
    works, seeded = Works(), random.Random(1)
    async with TestFleet(seed=1) as fleet:
        for _ in range(4):
            await works.add(fleet, works.agent("four", ["long.work"], slots=4))
        results = [await works.submit(fleet, "long.work", seeded.uniform(60, 180)) for _ in range(76)]

        await asyncio.gather(*results)

    assert max(hand_backs.values(), default=0) <= 3
    assert works.idle_beside_work() == []


async def test_urgent_and_bulk_work_share_the_slots_by_weight_however_long_it_takes(hand_backs: Counter[str]) -> None:
    works = Works()
    async with TestFleet() as fleet:
        await works.add(fleet, works.agent("one", ["long.work"], slots=8))
        for level in (Priority.P2, Priority.P0):
            for _ in range(150):
                await works.submit(fleet, "long.work", 0.3, level)
        await fleet.advance("6s")

    heartbeats = Counter(run.level for run in works.runs)
    assert heartbeats.total() >= 8 * 6 / 0.3 - 16
    assert heartbeats[Priority.P0] >= 8 / 13 * heartbeats.total()
    assert heartbeats[Priority.P2] >= 1 / 13 * heartbeats.total() - 2
    assert max(hand_backs.values(), default=0) <= 3


async def test_tasks_that_await_others_use_up_no_credit() -> None:
    """Quick tasks have credit before their slots are free; a hundred that await must not use up all of it."""
    works = Works()
    async with TestFleet(agents=[works.keeper()]) as fleet:
        await works.add(fleet, works.agent("mixed", ["mixed.work"], slots=8))
        await asyncio.gather(*[await works.submit(fleet, "mixed.work", 0.001) for _ in range(100)])
        awaiting = [await works.submit(fleet, "mixed.work", 0, awaits=GATE) for _ in range(100)]

        before = fleet.elapsed_seconds
        await asyncio.gather(*[await works.submit(fleet, "mixed.work", 0.001) for _ in range(100)])
        took = fleet.elapsed_seconds - before

        works.gate.set()
        await asyncio.gather(*awaiting)
    assert took < 1
    assert works.idle_beside_work() == []


def test_only_tasks_that_have_begun_tell_how_long_a_queues_tasks_take() -> None:
    consumer = QueueCredit("tasks.a.p1", Priority.P1, group="a")
    quick, asked, unheld = (Execution(Task("a.b", Priority.P1, b"1"), cast(Any, None), None) for _ in range(3))

    def hold(execution: Execution) -> None:
        execution.slot = True
        consumer.slots += 1

    for _ in range(30):
        hold(quick)
        consumer.running[quick] = 0.0
        assert consumer.stopped(quick, 0.001)

    hold(asked)  # its owner takes five seconds to answer
    assert consumer.is_quick(5.0)
    consumer.running[asked] = 5.0
    assert consumer.is_quick(5.0 + QUICK_SECONDS / 2)
    assert not consumer.is_quick(5.0 + QUICK_SECONDS)
    assert consumer.stopped(asked)
    assert consumer.is_quick(9.0)

    consumer.running[unheld] = 9.0
    assert not consumer.stopped(unheld)
    assert consumer.is_quick(19.0)
    assert consumer.slots == 0


async def test_silent_queue_keeps_no_slot_from_another() -> None:
    """The only slot is busy, so both queues are closed; when it frees, the one that is asked first does not answer."""
    works = Works()
    async with TestFleet() as fleet:
        await works.add(fleet, works.agent("one", ["silent.work", "other.work"], slots=1))
        first = await works.submit(fleet, "other.work", 10)
        await fleet.advance("1s")
        received = await works.submit(fleet, "silent.work", 1)
        waiting = await works.submit(fleet, "other.work", 1)
        fleet.server.silence(routing.task_queue("silent.work", Priority.P1))

        await asyncio.gather(first, waiting)

        assert fleet.elapsed_seconds == pytest.approx(11, abs=1)
        fleet.server.end_silence(routing.task_queue("silent.work", Priority.P1))
        await received


def draw_seconds(seeded: random.Random, *, most: float = MINUTES) -> float:
    """From a millisecond up, each order of magnitude as often."""
    return round(10 ** seeded.uniform(-3, most), 3)


SHORT_SEEDS = (1, 4, 8)
"""The seeds that `make test` plays."""


MOST_KILLS = 2
"""One fewer than the attempts of a task, each of which an agent's death may end."""


def kept(seconds: float) -> dict[str, Any]:
    """How a task of so many seconds is submitted to a capability that may run for an hour."""
    return {"durable": True} if seconds > 500 else {"timeout": "10m"}


@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=[] if seed in SHORT_SEEDS else pytest.mark.endurance) for seed in range(100)],
)
async def test_whatever_arrives_no_slot_is_idle_and_nothing_is_worn_out(seed: int, hand_backs: Counter[str]) -> None:
    """Every fourth seed has tasks of half an hour, which costs it several times the time."""
    works, seeded = Works(), random.Random(seed)
    most, timeout = (HALF_AN_HOUR, "1h") if seed % 4 == 3 else (MINUTES, "10m")
    names = [f"mixed.c{number}" for number in range(seeded.choice([1, 1, 2, 5]))]
    async with TestFleet(agents=[works.keeper()], seed=seed) as fleet:
        for _ in range(seeded.choice([1, 2, 3, 5, 20])):
            offered = names if seeded.random() < 0.7 else [names[0]]
            await works.add(fleet, works.agent("mixed", offered, slots=seeded.choice([1, 2, 4, 8]), timeout=timeout))
        last = await works.add(fleet, works.agent("mixed", names, slots=seeded.choice([1, 2, 4]), timeout=timeout))
        parents = seeded.choice([0, 0.1, 0.5])
        results, kills = [], 0
        for _ in range(seeded.choice([40, 120])):
            level = seeded.choice(list(Priority))
            awaits = draw_seconds(seeded) if seeded.random() < parents else 0
            seconds = draw_seconds(seeded) / 10 if awaits else draw_seconds(seeded, most=most)
            name = seeded.choice(names)
            results.append(await works.submit(fleet, name, seconds, level, awaits=awaits, **kept(seconds)))
            if seeded.random() < 0.3:
                await fleet.advance(seeded.choice([0.001, 0.03, 0.3, 3, 30]))
            alive = [one for one, staff in works.staff.items() if staff.until == inf and one != last]
            if alive and seeded.random() < 0.02 and (victim := seeded.choice(alive)) and kills < MOST_KILLS:
                kills += 1
                works.kill(fleet, victim)

        await asyncio.gather(*results)
        dead = [letter for name in names for letter in await fleet.dead_letters(name)]

    assert dead == []
    assert max(hand_backs.values(), default=0) <= 3
    assert works.idle_beside_work() == []
    assert works.late_urgent() == []


async def test_urgent_task_does_not_wait_behind_parents_that_go_on() -> None:
    """Four slots, a dozen parents of P1 whose children all end at once, and each then needs a slot for ten seconds."""
    began: list[float] = []
    agent = Agent("parents", slots=4)
    children = Agent("children", slots=20)

    @agent.capability("parent.run", timeout="10m")
    async def parent(_: None, ctx: Context) -> None:
        await ctx.request("child.run", priority=Priority.P1)
        await asyncio.sleep(10)

    @agent.capability("urgent.run")
    async def urgent(_: None) -> None:
        began.append(asyncio.get_running_loop().time())

    @children.capability("child.run")
    async def child(_: None) -> None:
        await asyncio.sleep(5)

    async with TestFleet(agents=[agent, children]) as fleet:
        parents = [await fleet.submit("parent.run") for _ in range(12)]
        await fleet.advance("6s")
        submitted = fleet.elapsed_seconds
        await (await fleet.submit("urgent.run", priority=Priority.P0)).result()

        await asyncio.gather(*(one.result() for one in parents))

    assert began[0] - submitted < MOMENT


@pytest.mark.parametrize(("shortest", "longest"), [(0.1, 0.1), (0.05, 0.12), (0.1, 0.25)])
@pytest.mark.parametrize("seed", range(1))
async def test_what_is_asked_for_ahead_of_a_slot_waits_for_one_quick_run_at_most(
    seed: int, shortest: float, longest: float, hand_backs: Counter[str]
) -> None:
    """Short tasks come in bursts, to agents that are full and to idle ones."""
    works, seeded = Works(), random.Random(seed)
    async with TestFleet(seed=seed) as fleet:
        for _ in range(3):
            await works.add(fleet, works.agent("even", ["even.work"], slots=4))
        results = []
        for _ in range(20):
            for _ in range(seeded.choice([1, 4, 8, 13, 20, 40])):
                results.append(await works.submit(fleet, "even.work", seeded.uniform(shortest, longest), Priority.P0))
            await fleet.advance(seeded.uniform(0, 0.5))

        await asyncio.gather(*results)

    assert works.idle_beside_work(QUICK_SECONDS) == []
    assert max(hand_backs.values(), default=0) <= 3


async def test_slots_are_busy_although_the_broker_is_far_away() -> None:
    """Tasks of 100 ms that end by the fifty: a confirm, an acknowledgement and a delivery take 16 ms."""
    works = Works()
    async with TestFleet() as fleet:
        [process] = await fleet.add(works.agent("far", ["far.work"], slots=50))
        process.broker.path.slow(lambda: 0.004)
        await asyncio.gather(*[await works.submit(fleet, "far.work", 0.1, Priority.P0) for _ in range(50)])
        since = fleet.elapsed_seconds

        await asyncio.gather(*[await works.submit(fleet, "far.work", 0.1, Priority.P0) for _ in range(500)])

        assert 1 / (fleet.elapsed_seconds - since) > 0.95


async def test_agent_that_starts_beside_a_backlog_keeps_no_slot_for_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first queue brings its tasks while the others are being opened: none of them is asked meanwhile."""
    consume, opening, twice = MemoryBroker.consume, set[str](), list[str]()

    async def slowly(self: MemoryBroker, queue: str, *arguments: Any, **options: Any) -> Consumer:
        twice.extend({queue} & opening)
        opening.add(queue)
        consumer = await consume(self, queue, *arguments, **options)
        await asyncio.sleep(0.08)
        opening.discard(queue)
        return consumer

    works = Works()
    async with TestFleet() as fleet:
        await works.add(fleet, works.agent("former", ["some.work"], slots=1))
        results = [await works.submit(fleet, "some.work", 5)]
        await fleet.advance("1s")
        results += [await works.submit(fleet, "some.work", 0.001) for _ in range(300)]
        monkeypatch.setattr(MemoryBroker, "consume", slowly)
        await works.add(fleet, works.agent("new", ["some.work"], slots=150))

        await asyncio.gather(*results)

    assert twice == []
