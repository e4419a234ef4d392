"""A node's own heartbeat: how long the agent that has it may be silent before another gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from coditect import Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.model.control import Started
from coditect.model.workflow.states import TaskState
from dispatcher.commands import Began, Command, Lost
from dispatcher.desk import Desk
from dispatcher.flights import Flights
from dispatcher.layers.ledger.effects import Place
from dispatcher.opening import learn
from dispatcher.patrol import EARLY_ACK_MS, SILENT_MS, look
from dispatcher.store.memory import MemoryDatabase
from dispatcher.window import Window
from tests.unit.dispatcher.ledger import AGENT, Ledger

PLACE = Place("w", "one")
HEARTBEAT_MS = 40_000


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with MemoryDatabase() as database:
        yield await Ledger.open(database)


@dataclass
class Walked:
    """A desk as far as the patrol sees it."""

    flights: Flights = field(default_factory=lambda: Flights(Window(lambda: 0.0)))
    commands: list[Command] = field(default_factory=list)

    def put(self, command: Command) -> None:
        self.commands.append(command)

    async def lost(self, now_ms: int) -> list[Command]:
        """What one round lays on the desk."""
        self.commands.clear()
        await look(cast(Desk, self), MemoryBroker(MemoryServer()), now_ms)
        return self.commands


async def working(ledger: Ledger, **settings: str) -> None:
    """The one node is begun by an agent."""
    flow = Workflow("one")
    flow.task("work", name="one", **settings)  # type: ignore[arg-type]
    await ledger.start(flow.definition())
    await ledger.turn(Began(Started("w", "one", 1, 1, AGENT, 1, ledger.now_ms)))


@pytest.mark.parametrize("taken_over", [False, True], ids=["seen", "taken over"])
async def test_node_whose_agent_is_silent_for_longer_is_given_to_another(ledger: Ledger, taken_over: bool) -> None:
    await working(ledger, heartbeat="40s")
    desk = Walked()
    if taken_over:
        desk.flights.agree((await ledger.database.read(lambda tr: learn(tr, 0))).flights, ledger.now_ms)
    for moved in (moved for effects in ledger.seen for moved in effects.moved if not taken_over):
        desk.flights.follow(moved, ledger.now_ms)

    early = tuple(await desk.lost(ledger.now_ms + HEARTBEAT_MS))
    desk.flights.hear(PLACE, 1, ledger.now_ms + 20_000)
    heard = tuple(await desk.lost(ledger.now_ms + HEARTBEAT_MS + 1))
    silent = tuple(await desk.lost(ledger.now_ms + 20_000 + HEARTBEAT_MS + 1))
    await ledger.turn(*silent)

    assert (early, heard, silent) == ((), (), (Lost(PLACE, 1, AGENT),))
    row = await ledger.node("one")
    assert (row.state, row.attempt, row.fence) == (TaskState.PUBLISHED, 2, 2)


async def test_own_heartbeat_goes_before_the_one_of_long_tasks(ledger: Ledger) -> None:
    await working(ledger, heartbeat="5m")
    desk = Walked()
    desk.flights.agree((await ledger.database.read(lambda tr: learn(tr, 0))).flights, ledger.now_ms)
    long_ms = ledger.now_ms + EARLY_ACK_MS
    desk.flights.hear(PLACE, 1, long_ms)

    assert not await desk.lost(long_ms + 2 * SILENT_MS)


async def test_silence_says_nothing_of_a_short_task_without_one(ledger: Ledger) -> None:
    await working(ledger)
    desk = Walked()
    desk.flights.agree((await ledger.database.read(lambda tr: learn(tr, 0))).flights, ledger.now_ms)

    assert not await desk.lost(ledger.now_ms + EARLY_ACK_MS)
