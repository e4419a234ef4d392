from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest

from coditect.aio.supervisor import Supervisor
from coditect.model.ids import AgentId
from dispatcher.ledger import leases
from dispatcher.ledger.commands import Command, Lost
from dispatcher.ledger.effects import NodeKey
from dispatcher.liveness.monitor import AgentGone
from dispatcher.recovery.failover import Predecessors, dispatch_again
from dispatcher.shards.in_flight import Flight
from dispatcher.shards.orphans import EARLY_ACK_MS
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.memory import MemoryDatabase
from tests.unit.broker.virtual_time import in_virtual_time

NOW_MS = 10_000_000
GONE = AgentId("worker-1")


class FlightsLaid(list[tuple[NodeKey, Flight]]):
    """Flights as far as failover sees them."""

    doubtful = 0

    def doubts(self, flight: Flight) -> bool:
        return flight.publication <= self.doubtful


@dataclass
class Laid:
    """A shard worker as far as failover sees it."""

    in_flight: FlightsLaid
    commands: list[Command] = field(default_factory=list)

    def put(self, command: Command) -> None:
        self.commands.append(command)


def flight(node: str, *, agent: str = GONE, age_ms: int = 1_000) -> tuple[NodeKey, Flight]:
    return NodeKey("w", node), Flight("work.do", "p1", 7, NOW_MS - age_ms, agent=agent)


def laid() -> Laid:
    return Laid(
        FlightsLaid(
            [
                flight("short"),
                flight("long", age_ms=EARLY_ACK_MS + 1),
                flight("another's", agent="worker-2", age_ms=EARLY_ACK_MS + 1),
                flight("nobody's", agent="", age_ms=EARLY_ACK_MS + 1),
            ]
        )
    )


@pytest.mark.parametrize(
    ("released", "again"), [(True, ["long"]), (False, ["short", "long"])], ids=["given back", "still held"]
)
def test_only_what_the_broker_does_not_give_to_others_is_published_anew(released: bool, again: list[str]) -> None:
    worker = laid()

    dispatch_again(cast(ShardWorker, worker), AgentGone(GONE, released), NOW_MS)

    assert worker.commands == [Lost(NodeKey("w", node), 7, GONE) for node in again]


def test_what_a_rebuild_left_with_the_agent_is_published_anew_though_the_broker_gave_back_what_it_has() -> None:
    worker = laid()
    worker.in_flight.doubtful = 7

    dispatch_again(cast(ShardWorker, worker), AgentGone(GONE, released=True), NOW_MS)

    assert worker.commands == [Lost(NodeKey("w", node), 7, GONE) for node in ("short", "long")]


class Counting:
    def __init__(self, *, closes: int = 2) -> None:
        self.asked: list[str] = []
        self._closes = closes

    async def evict(self, process: str) -> int:
        self.asked.append(process)
        await asyncio.sleep(1)
        return self._closes


@in_virtual_time
async def test_former_owner_of_many_shards_is_evicted_once_and_nobody_waits_for_it() -> None:
    evict = Counting()
    async with Supervisor() as background, MemoryDatabase() as database:
        predecessors = Predecessors(evict, background, database)
        began = asyncio.get_running_loop().time()
        for owner in ("ada", "ada", "bob", "ada"):
            await predecessors.evict(owner)

        assert asyncio.get_running_loop().time() == began
        await asyncio.sleep(10)

    assert evict.asked == ["ada", "bob"]


@in_virtual_time
async def test_former_owner_that_is_back_is_not_looked_for_again_until_it_is_lost_again() -> None:
    evict = Counting(closes=0)
    async with Supervisor() as background, MemoryDatabase() as database:
        predecessors = Predecessors(evict, background, database)
        await predecessors.evict("ada")
        await database.run(lambda tr: leases.renew(tr, "ada", 7))
        await asyncio.sleep(20)
        assert evict.asked == ["ada"]

        await database.run(lambda tr: leases.leave(tr, "ada"))
        await predecessors.evict("ada")
        await asyncio.sleep(20)

    assert evict.asked == ["ada"] * 3
