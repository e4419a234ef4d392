"""A node's own heartbeat: how long the agent that has it may be silent before another gets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from coditect import Workflow
from coditect.agent.workflow_tasks.heartbeats import BEAT_SECONDS
from coditect.agent.workflow_tasks.reports import EVERY_SECONDS
from coditect.aio.clock import Clock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.wire.claims import Claim, Verdict
from coditect.wire.control import Started
from coditect.workflow.definition import LEAST_HEARTBEAT_MS
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import Began, Claimed, Command, Lost
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.attempts import HEARTBEAT
from dispatcher.ledger.workflows.recover import learn
from dispatcher.liveness.ping import Pings
from dispatcher.shards.in_flight import EARLY_ACK_MS, SILENT_SECONDS, InFlight
from dispatcher.shards.orphans import LOOK_SECONDS, OrphanDetector
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.memory import MemoryDatabase
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger

PLACE = NodeKey("w", "one")
HEARTBEAT_SECONDS = 45


@dataclass
class Walked:
    """A shard worker as far as its orphan detector sees it, and that detector."""

    broker: MemoryBroker
    clock: Ledger
    shard: int = 0
    in_flight: InFlight = field(default_factory=lambda: InFlight(Capacity(lambda: 0.0)))
    lost: list[Command] = field(default_factory=list)
    followed: int = 0
    """How many of the ledger's effects are taken in."""

    def __post_init__(self) -> None:
        self.detector = OrphanDetector(
            cast(ShardWorker, self), self.broker, cast(Clock, self), Pings(self.broker, name="pings")
        )

    def put(self, command: Command) -> None:
        self.lost.append(command)

    def now_ms(self) -> int:
        return self.clock.now_ms

    def follow(self) -> None:
        """Takes in what the ledger has done since."""
        for effects in self.clock.seen[self.followed :]:
            for moved in effects.transitions:
                self.in_flight.follow(moved, asyncio.get_running_loop().time())
        self.followed = len(self.clock.seen)

    async def walk(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_SECONDS)):
            await asyncio.sleep(LOOK_SECONDS)
            await self.detector.look()


@asynccontextmanager
async def working(*, taken_over: bool = False, **settings: str) -> AsyncIterator[tuple[Ledger, Walked]]:
    """The one node is begun by an agent, and looked after."""
    async with MemoryDatabase() as database, MemoryBroker(MemoryServer(), name="dispatcher") as broker:
        ledger = await Ledger.open(database)
        walked, now = Walked(broker, ledger), asyncio.get_running_loop().time()
        flow = Workflow("one")
        flow.task("work", name="one", **settings)  # type: ignore[arg-type]
        await ledger.start(flow.definition())
        await ledger.batch(Began(Started("w", "one", 1, 1, AGENT, 1, ledger.now_ms)))
        if taken_over:
            walked.in_flight.agree((await database.read(lambda tr: learn(tr, 0))).in_flight, now)
        else:
            walked.follow()
        yield ledger, walked


@pytest.mark.parametrize("taken_over", [False, True], ids=["seen", "taken over"])
@in_virtual_time
async def test_node_whose_agent_is_silent_for_longer_is_given_to_another(taken_over: bool) -> None:
    async with working(taken_over=taken_over, heartbeat="45s") as (ledger, walked):
        await walked.walk(20)
        walked.in_flight.hear(PLACE, 1, asyncio.get_running_loop().time())
        await walked.walk(HEARTBEAT_SECONDS)
        heard = list(walked.lost)
        await walked.walk(LOOK_SECONDS)
        await ledger.batch(*walked.lost)

        assert (heard, walked.lost) == ([], [Lost(PLACE, 1, AGENT, HEARTBEAT)])
        row = await ledger.node("one")
        assert (row.state, row.attempt, row.fence) == (TaskState.PUBLISHED, 2, 2)


@in_virtual_time
async def test_one_lost_word_is_no_silence_by_the_shortest_heartbeat() -> None:
    async with working(heartbeat=f"{LEAST_HEARTBEAT_MS}ms") as (_, walked):
        await walked.walk(2 * BEAT_SECONDS)
        await asyncio.sleep(EVERY_SECONDS)
        await walked.detector.look()

        assert walked.lost == []


@in_virtual_time
async def test_claim_of_the_agent_that_has_it_is_a_word_of_it() -> None:
    async with working(heartbeat="45s") as (ledger, walked):
        await walked.walk(HEARTBEAT_SECONDS)
        claim = await ledger.batch(Claimed(PLACE, 1, AGENT))
        walked.follow()

        await walked.walk(HEARTBEAT_SECONDS)

        assert (claim, walked.lost) == ((Claim(Verdict.RUN, 1, 1),), [])


@in_virtual_time
async def test_own_heartbeat_goes_before_the_one_of_long_tasks() -> None:
    async with working(heartbeat="5m") as (ledger, walked):
        ledger.now_ms += EARLY_ACK_MS + 1

        await walked.walk(2 * SILENT_SECONDS)

        assert walked.lost == []


@in_virtual_time
async def test_silence_says_nothing_of_a_short_task_without_one() -> None:
    async with working() as (_, walked):
        await walked.walk(2 * SILENT_SECONDS)

        assert walked.lost == []
