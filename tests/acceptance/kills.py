"""A fleet of `coditect up` whose agent, broker and Redis are killed with -9 amid a load; a judge of what came of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from agents.load import load as load_agent
from coditect.agent.intake import most_in_hand
from coditect.broker.rabbitmq import AmqpBroker
from coditect.client.client import Client
from coditect.local import ChildState, Phase, UpFolder, read_state
from coditect.model.capability import Priority
from coditect.operations.load import (
    Effect,
    LoadAnswer,
    LoadCounts,
    LoadPlan,
    LoadReport,
    drive,
    parse_effects,
    summarize,
)
from coditect.settings.settings import Settings
from coditect.wire import routing
from tests.support import eventually, patient

ROOT = Path(__file__).resolve().parents[2]
LOAD = LoadPlan(
    tasks=2_000,
    concurrency=100,
    per_second=None,
    min_ms=50,
    max_ms=200,
    capability="load.work",
    priority=Priority.P1,
    wait_seconds=60.0,
)
AGENTS = ("load-1", "load-2")
BROKER, REDIS = "rabbitmq", "redis"
EARLIEST, LATEST = 0.3, 0.7
"""When a kill proves something: the share of the tasks that have ended."""
ACK_SECONDS = 0.2
"""From an answer until the broker has its ack, at most, on an idle machine: 10 ms (ADR 7), and the broker's disk."""


@dataclass(frozen=True, slots=True)
class Strike:
    """A kill to come."""

    victim: str
    ended: int
    """It comes when so many tasks have ended."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill that happened."""

    victim: str
    ended: int
    at_seconds: float
    """Since the start of the load."""
    pid: int
    ack_seconds: float
    """How long the broker may have lacked the ack of what was answered, as slow as the machine was then."""

    def in_flight(self, answers: Iterable[LoadAnswer]) -> set[str]:
        """Ids of the tasks that were submitted and not answered at that moment."""
        return {
            one.task_id
            for one in answers
            if one.task_id
            and one.finished_at_seconds - one.latency_seconds <= self.at_seconds < one.finished_at_seconds
        }


def strikes(seed: int) -> list[Strike]:
    """One of each kind; the seed decides which agent, in which order and when."""
    random = Random(seed)
    victims = [random.choice(AGENTS), BROKER, REDIS]
    random.shuffle(victims)
    moments = sorted(random.randint(int(EARLIEST * LOAD.tasks) + 1, int(LATEST * LOAD.tasks)) for _ in victims)
    return [Strike(victim, ended) for victim, ended in zip(victims, moments, strict=True)]


class StruckCounts(LoadCounts):
    """The load's own counts, which strike at the very answer that makes the number full."""

    def __init__(self, plan: Sequence[Strike], kill: Callable[[str], int]) -> None:
        super().__init__()
        self._to_come = list(plan)
        self._kill = kill
        self._started_at = asyncio.get_running_loop().time()
        self.kills: list[Kill] = []

    def add(self, answer: LoadAnswer) -> None:
        super().add(answer)
        while self._to_come and len(self.answers) >= self._to_come[0].ended:
            victim = self._to_come.pop(0).victim
            pid = self._kill(victim)
            now = asyncio.get_running_loop().time() - self._started_at
            self.kills.append(Kill(victim, len(self.answers), now, pid, patient(ACK_SECONDS)))


@dataclass(frozen=True, slots=True)
class Fleet:
    """What `coditect up` keeps running in a folder."""

    folder: Path

    @property
    def effect_log(self) -> Path:
        """Where its agents leave a line for each execution."""
        return self.folder / "effects.log"

    @property
    def children(self) -> dict[str, ChildState]:
        """Every program as its supervisor sees it now, by name."""
        state = read_state(UpFolder(self.folder / ".coditect"))
        assert state is not None
        return {child.name: child for child in state.children}

    @property
    def settings(self) -> Settings:
        """Those of a client."""
        state = read_state(UpFolder(self.folder / ".coditect"))
        assert state is not None
        return Settings(amqp_url=state.amqp_url, redis_url=state.redis_url)

    def kill(self, victim: str) -> int:
        """With -9; its supervisor starts it again. Its process id."""
        process = self.children[victim].process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        return process.pid

    def whole(self) -> bool:
        """Whether everything runs."""
        return all(child.phase is Phase.READY for child in self.children.values())

    async def idle(self) -> bool:
        """Whether nothing waits for an agent, and nothing was given up."""
        queues = (routing.task_queue(LOAD.capability, LOAD.priority), routing.dead_queue(LOAD.capability))
        async with AmqpBroker(self.settings.amqp_url, name="observer") as broker:
            stats = [await broker.stats(queue) for queue in queues]
        return all(one is not None and one.messages == 0 for one in stats)


@asynccontextmanager
async def fleet_up(folder: Path) -> AsyncIterator[Fleet]:
    """Private servers and two load agents under a supervisor of their own; all gone at the end."""
    fleet = Fleet(folder)
    elsewhere = {"CODITECT_AMQP_URL", "CODITECT_REDIS_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    environment |= {"CODITECT_LOAD_LOG": str(fleet.effect_log)}

    async def coditect(*words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coditect", *words, cwd=folder, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0, f"coditect {words[0]} failed"

    try:
        await coditect("up", "--detach", f"{ROOT / 'agents' / 'load.py'}={len(AGENTS)}")
        yield fleet
    finally:
        await coditect("down")


@dataclass(frozen=True, slots=True)
class Ordeal:
    """One run of the load, the kills amid it and what its client and the effect log say."""

    kills: Sequence[Kill]
    answers: Sequence[LoadAnswer]
    report: LoadReport
    late_replies: int
    """Second answers that reached the client's process and went no further."""

    @property
    def repeats(self) -> int:
        """Executions beyond the first of each task."""
        return sum(len(effects) - 1 for effects in self.report.repeated.values())

    @property
    def unexcused(self) -> set[str]:
        """Tasks that one process executed twice, and those that were repeated more often than kills explain."""
        return {
            task
            for task, effects in self.report.repeated.items()
            if len({one.pid for one in effects}) < len(effects) or len(effects) - 1 > self._deliveries(task, effects)
        }

    def _deliveries(self, task: str, effects: Sequence[Effect]) -> int:
        """How many kills had a task delivered again: an agent had it, and the broker no ack of it.

        A killed agent's deliveries alone come again, and with the broker those of all agents that live. What has come
        again may be in hand at each later kill: the effect log does not say when it was executed.
        """
        many, living = 0, {one.pid for one in effects}
        for kill in self.kills:
            holders = {BROKER: living, REDIS: set[int]()}.get(kill.victim, living & {kill.pid})
            in_hand = many or task in kill.in_flight(self.answers)
            many += bool(holders) and bool(in_hand or any(task in self._unacked(kill, pid) for pid in holders))
            living = living - {kill.pid}
        return many

    def _unacked(self, kill: Kill, pid: int) -> set[str | None]:
        """What an agent had answered just before a kill; it has so many tasks in hand at most."""
        answered = [one for one in self.answers[: kill.ended] if one.agent_id == self.makers[pid]]
        since = kill.at_seconds - kill.ack_seconds
        return {one.task_id for one in answered[-most_in_hand(load_agent.slots) :] if one.finished_at_seconds >= since}

    @property
    def makers(self) -> dict[int, str]:
        """The agents of what was executed repeatedly, by process."""
        return {one.pid: one.agent_id for effects in self.report.repeated.values() for one in effects}

    def __str__(self) -> str:
        kills = ", ".join(
            f"{kill.victim} at {kill.ended / LOAD.tasks:.0%} ({len(kill.in_flight(self.answers))} in flight)"
            for kill in self.kills
        )
        return (
            f"{kills}: {len(self.answers)} ended, {len(self.report.lost)} lost, {len(self.report.hung)} hung, "
            f"{self.repeats} repeated, {self.late_replies} late replies, "
            f"{self.report.elapsed_seconds:.1f} s"
        )


async def suffer(fleet: Fleet, seed: int) -> Ordeal:
    """Puts the fleet under the load and kills as the seed says; returns when every task has ended."""
    async with Client.connecting(fleet.settings) as client:
        counts = StruckCounts(strikes(seed), fleet.kill)
        await drive(client, LOAD, counts)
        await eventually(fleet.whole)
        late_replies = client._requests.strays.value
    ids = frozenset(answer.task_id for answer in counts.answers if answer.task_id)
    with fleet.effect_log.open(encoding="utf-8") as lines:
        effects = parse_effects(lines, ids)
    return Ordeal(counts.kills, counts.answers, summarize(counts.answers, effects), late_replies)
