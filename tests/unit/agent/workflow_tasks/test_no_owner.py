"""Tasks whose owner does not exist, or says nothing: refused, or few of them wait, and nobody beside them does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coditect import Agent
from coditect.agent.managed import WAITING_SHARE
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import shard_queues
from coditect.model.message import Message
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.headers import HEADER_PREFIX

MANY = 75
PLACES = 50


def _works(ran: list[Any]) -> Agent:
    agent = Agent("works", slots=2)

    @agent.capability("work.do")
    async def do(value: Any) -> Any:
        ran.append(value)
        return value

    return agent


@asynccontextmanager
async def open_fleet(ran: list[Any]) -> AsyncIterator[tuple[TestFleet, MemoryBroker]]:
    """A fleet with fewer places than messages are forged, and a stranger's connection."""
    async with (
        TestFleet(agents=[_works(ran)], settings=Settings(max_suspended=PLACES)) as fleet,
        MemoryBroker(fleet.server, name="stranger") as stranger,
    ):
        yield fleet, stranger


async def forge(broker: MemoryBroker, number: int, headers: Mapping[str, Any]) -> None:
    named = {
        HEADER_PREFIX + name: value for name, value in {"node": f"n{number}", "fence": 1, **headers}.items() if value
    }
    message = Message(b'"forged"', named, message_id=f"forged-{number}")
    await broker.publish(message, exchange=routing.TASKS, routing_key=f"work.do.p{number % 3}")


@pytest.mark.parametrize(
    "headers",
    [
        {"workflow": "none", "origin": "no such shard"},
        {"workflow": "none", "origin": "12345"},
        {"workflow": "none"},
        {"workflow": "none", "origin": "0", "publication": 7},
        {"workflow": "none", "origin": "0", "publication": 7, "node": ""},
        {"workflow": "none", "origin": "0"},
    ],
    ids=["no number", "no such shard", "none", "a real shard, no such workflow", "no node", "no publication"],
)
@pytest.mark.parametrize("fresh", [True, False])
async def test_forged_owner_costs_nobody_a_place(headers: dict[str, Any], fresh: bool) -> None:
    ran: list[Any] = []
    async with open_fleet(ran) as (fleet, stranger):
        now = {"published-at": round(fleet._epoch_ms + fleet.elapsed_seconds * 1000)} if fresh else {}
        for number in range(MANY):
            await forge(stranger, number, headers | now)
        asked = fleet.elapsed_seconds

        handles = [await fleet.submit("work.do", number) for number in range(20)]
        assert [await handle.result(int) for handle in handles] == list(range(20))
        assert fleet.elapsed_seconds - asked < 1
        await fleet.advance("10s")

        letters = await fleet.dead_letters("work.do")
        expected = 0 if fresh and headers.get("origin") == "0" else MANY  # that shard takes a result and refuses it
        assert {letter.reason for letter in letters} <= {"no_owner"}
        assert len(letters) == expected
        (agent,) = fleet.agents
        assert (agent.load.suspended, agent.load.awaiting_owner) == (0, 0)
        assert ran.count("forged") == (MANY if fresh else 0)


async def test_shard_that_says_nothing_takes_a_share_of_the_places_and_is_listed() -> None:
    ran: list[Any] = []
    async with open_fleet(ran) as (fleet, stranger):
        await stranger.declare(shard_queues(77))
        for number in range(MANY):
            await forge(stranger, number, {"workflow": "none", "origin": "77"})
        await fleet.advance("30s")

        (agent,) = fleet.agents
        (record,) = await fleet.registry.find(Search())
        assert agent.load.awaiting_owner == agent.load.suspended == PLACES // WAITING_SHARE
        assert record.load.awaiting_owner == PLACES // WAITING_SHARE

        asked = fleet.elapsed_seconds
        handles = [await fleet.submit("work.do", number) for number in range(50)]
        assert [await handle.result(int) for handle in handles] == list(range(50))
        assert fleet.elapsed_seconds - asked < 5, "the others are on their way round, and hold no slot for long"
        assert ran.count("forged") == 0
