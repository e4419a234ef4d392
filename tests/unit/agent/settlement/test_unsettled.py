"""What cannot be settled ends, too: counted, after a few tries with growing pauses, as an answer or a dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from coditect import Agent, Retry
from coditect.agent import settlement
from coditect.agent.settlement import Settler
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.errors import InputError, NotFound, SetupError
from coditect.model.message import Message
from coditect.testing import FleetCrashed, TestFleet
from coditect.wire import routing
from coditect.wire.headers import HEADER_PREFIX
from coditect.wire.routing import REFUSED_SECONDS
from tests.unit.agent.scene import failure_of, replies

ANSWERS = "answers"


class Tries:
    """An agent that counts its runs and fails as it is told."""

    def __init__(self) -> None:
        self.attempts: list[int] = []
        self.error: Exception | None = ValueError("on purpose")
        self.agent = Agent("tries", slots=2)

        @self.agent.capability("try.it", retry=Retry(max_attempts=3))
        async def attempt(_: Any, ctx: Any = None) -> str:
            self.attempts.append(len(self.attempts) + 1)
            if self.error is not None:
                raise self.error
            return "done"


@asynccontextmanager
async def open_fleet(tries: Tries) -> AsyncIterator[tuple[TestFleet, MemoryBroker]]:
    """The agent, and a stranger with a queue for answers."""
    async with TestFleet(agents=[tries.agent]) as fleet, MemoryBroker(fleet.server, name="stranger") as stranger:
        await stranger.declare(Topology(queues=(Queue(ANSWERS, QueueType.CLASSIC),)))
        yield fleet, stranger


async def publish(stranger: MemoryBroker, body: bytes = b"1", **how: Any) -> None:
    headers = {HEADER_PREFIX + name: value for name, value in how.pop("headers", {}).items()}
    await stranger.publish(Message(body, headers, **how), exchange=routing.TASKS, routing_key="try.it.p1")


@pytest.mark.parametrize("levels", [254, 400, 1_000])
async def test_history_that_could_not_be_written_again_costs_no_attempt(levels: int) -> None:
    tries = Tries()
    async with open_fleet(tries) as (fleet, stranger):
        arrived = await replies(stranger, ANSWERS)
        errors = '[{"type":"E","message":' + "[" * levels + "]" * levels + "}]"

        await publish(stranger, headers={"errors": errors}, reply_to=ANSWERS)
        await fleet.advance("5m")

        (letter,) = await fleet.dead_letters("try.it")
        assert len(tries.attempts) == 3
        assert (letter.reason, letter.attempts, len(letter.errors)) == ("handler_error", 3, 4)
        assert [one.message.headers[HEADER_PREFIX + "status"] for one in arrived] == ["failed"]


async def test_reply_that_the_permissions_refuse_is_dropped_and_not_tried_for_others() -> None:
    tries = Tries()
    tries.error = None
    async with open_fleet(tries) as (fleet, stranger):
        fleet.server.forbid("")

        for number in range(20):
            await publish(stranger, reply_to=ANSWERS, message_id=f"foreign-{number}")
        handles = [await fleet.submit("try.it", number) for number in range(20)]
        assert [await handle.result(str) for handle in handles] == ["done"] * 20
        await fleet.advance("30s")

        assert len(tries.attempts) == 40, "each ran once"
        assert fleet.server.refusals[""] <= 4, "those that were under way at once"
        assert await fleet.dead_letters("try.it") == ()

        await fleet.advance(REFUSED_SECONDS)
        await publish(stranger, reply_to=ANSWERS)
        await fleet.settled()
        assert fleet.server.refusals[""] <= 5, "it is tried again in a minute"


@pytest.mark.parametrize(
    ("part", "runs"), [("coditect.agent.handler.limit_seconds", 0), ("coditect.agent.outcomes.Replies.post", 3)]
)
async def test_task_on_which_the_runtime_fails_is_counted_and_answered(
    part: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = Tries()
    tries.error = None

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(part, broken)
    with pytest.raises(FleetCrashed):
        async with open_fleet(tries) as (fleet, _):
            failure = await failure_of(await fleet.submit("try.it"), "1h")

            (letter,) = await fleet.dead_letters("try.it")
            assert (failure.reason, letter.attempts, len(tries.attempts)) == ("not_settled", 3, runs)
            assert "a bug" in failure.message


@pytest.mark.parametrize("kind", [NotFound, SetupError])
async def test_trouble_with_our_own_exchanges_is_waited_for_and_ends_as_a_dead_letter(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, returned = Tries(), []

    async def refused(*_: object, **__: object) -> None:
        returned.append(asyncio.get_running_loop().time())
        raise kind("There is no such exchange")

    monkeypatch.setattr(Settler, "send_to", refused)
    with pytest.raises(FleetCrashed):
        async with open_fleet(tries) as (fleet, stranger):
            arrived = await replies(stranger, ANSWERS)

            await publish(stranger, reply_to=ANSWERS)
            await fleet.advance("1h")

            pauses = [later - earlier for earlier, later in pairwise(returned)]
            (letter,) = await fleet.dead_letters("try.it")
            assert len(tries.attempts) == settlement.MOST_RETURNS + 1
            assert pauses == sorted(pauses)
            assert pauses[-1] >= settlement.RETURNS.longest > 10 * pauses[0]
            assert letter.reason == "rejected"
            assert len(arrived) == 1


async def test_message_that_cannot_even_be_buried_is_rejected_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = Tries()

    async def unspeakable(*_: object, **__: object) -> None:
        raise InputError("AMQP cannot carry a property or header")

    monkeypatch.setattr(Settler, "bury", unspeakable)
    with pytest.raises(FleetCrashed):
        async with open_fleet(tries) as (fleet, stranger):
            arrived = await replies(stranger, ANSWERS)

            await publish(stranger, type="something else", reply_to=ANSWERS)
            await publish(stranger, reply_to=ANSWERS, headers={"max-attempts": 1})
            await fleet.advance("5m")

            letters = await fleet.dead_letters("try.it")
            assert [letter.reason for letter in letters] == ["rejected", "rejected"]
            assert len(arrived) == 2
            assert len(tries.attempts) == 1
