"""Agents whose tasks last as long as they are told, in virtual time, and what is to be proven of their slots."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from coditect import Agent, Context, Priority
from coditect.testing import TestFleet

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
