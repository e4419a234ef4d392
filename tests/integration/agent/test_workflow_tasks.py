"""Workflow tasks on a real broker, on each wire path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from coditect import Agent, Context
from coditect.agent.workflow_tasks import acquire
from coditect.aio.backoff import Backoff
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import capability_queues
from coditect.model.capability import Priority
from coditect.model.result import Status
from coditect.settings.settings import Settings
from coditect.wire import control_messages, routing
from coditect.wire.claims import Claim, Verdict
from tests.fleet import running
from tests.owner import ScriptedOwner, granting, saying
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers


@pytest.fixture
def settings(settings: Settings, wire: str) -> Settings:
    """Those of agent and owner alike."""
    return replace(settings, wire=wire)


@pytest.fixture
def shard() -> int:
    """A shard that no other test has."""
    return 1_000 + uuid4().int % 1_000_000_000


@asynccontextmanager
async def owner_of(shard: int, settings: Settings) -> AsyncIterator[ScriptedOwner]:
    async with AmqpBroker(settings.amqp_url, name="owner", wire=settings.wire) as broker:
        owner = ScriptedOwner(broker, shard)
        await owner.open()
        yield owner
        await owner.leave()


class Gated:
    """An agent whose handler waits for the gate."""

    def __init__(self, capability: str) -> None:
        self.runs: list[tuple[Any, int, int]] = []
        self.gate = asyncio.Event()
        self.agent = Agent("gated", slots=4)

        @self.agent.capability(capability)
        async def do(wanted: Any, ctx: Context) -> Any:
            self.runs.append((wanted, ctx.fence, ctx.attempt))
            if wanted == "fail":
                raise ValueError("on purpose")
            await ctx.progress(0.5, "half")
            await self.gate.wait()
            return wanted


async def test_results_and_starts_reach_the_owner(
    servers: Servers, settings: Settings, capability: str, shard: int
) -> None:
    gated = Gated(capability)
    async with running(gated.agent, servers, settings=settings) as fleet, owner_of(shard, settings) as owner:
        await owner.publish(capability, {"n": 1}, node="one", publication=3, fence=2)
        await owner.publish(capability, "fail", node="two", publication=4)
        await eventually(lambda: owner.started and owner.progress)

        gated.gate.set()
        await eventually(lambda: len(owner.results) == 2)
        results = {one.owner.node: one for one in owner.results}

        assert (results["one"].outcome.body, results["one"].publication, results["one"].owner.fence) == (
            b'{"n":1}',
            3,
            2,
        )
        assert results["two"].outcome.status is Status.FAILED
        assert [(one.node, one.fence, one.publication) for one in owner.started] == [("one", 2, 3)]
        assert [(one.share, one.message) for one in owner.progress] == [(0.5, "half")]
        assert await fleet.holds(routing.dead_queue(capability), 0)


async def test_task_whose_connection_was_lost_is_joined_under_a_new_fence(
    servers: Servers, settings: Settings, capability: str, shard: int
) -> None:
    gated = Gated(capability)
    async with running(gated.agent, servers, settings=settings) as fleet, owner_of(shard, settings) as owner:
        owner.decide = granting(fence=9)
        await owner.publish(capability, 1, fence=2)
        await eventually(lambda: gated.runs)

        fleet.agents_broker.drop()
        await eventually(lambda: owner.claims)
        gated.gate.set()
        # what was posted under the fence before may come behind it: its owner refuses that
        await eventually(lambda: 9 in {one.owner.fence for one in owner.results})

        assert [one["running"] for one in owner.claims] == [True]
        assert len(gated.runs) == 1
        await eventually(lambda: fleet.runtime.load().running == fleet.runtime.load().suspended == 0)
        assert await fleet.drained(routing.task_queue(capability, Priority.P1))


async def test_delivery_that_somebody_gave_back_is_claimed(
    servers: Servers, settings: Settings, capability: str, shard: int
) -> None:
    gated = Gated(capability)
    gated.gate.set()
    async with owner_of(shard, settings) as owner:
        answers = [Claim(Verdict.WAIT), Claim(Verdict.RUN, 5, 2)]
        owner.decide = lambda _: answers.pop(0)
        await owner.broker.declare(capability_queues(capability))
        await owner.publish(capability, 1)
        taken = await owner.broker.get(routing.task_queue(capability, Priority.P1))
        assert taken is not None
        taken.requeue()

        async with running(gated.agent, servers, settings=settings):
            await eventually(lambda: owner.results)

        assert (gated.runs, [one.owner.fence for one in owner.results]) == ([(1, 5, 2)], [5])


async def test_stale_delivery_is_dropped(servers: Servers, settings: Settings, capability: str, shard: int) -> None:
    gated = Gated(capability)
    async with running(gated.agent, servers, settings=settings) as fleet, owner_of(shard, settings) as owner:
        owner.decide = saying(Verdict.STALE)

        await owner.publish(capability, 1, age_ms=5_000)
        await eventually(lambda: owner.claims)
        await eventually(lambda: fleet.runtime.load().running == 0)

        assert (gated.runs, owner.results) == ([], [])


async def test_result_of_a_shard_that_nobody_has_any_more_is_not_lost(
    servers: Servers, settings: Settings, capability: str, shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acquire, "BACKOFF", Backoff(0.1, 60.0))
    gated = Gated(capability)
    gated.gate.set()
    async with (
        running(gated.agent, servers, settings=settings) as fleet,
        owner_of(shard, settings) as owner,
    ):
        await owner.publish(capability, "first", node="first")
        await eventually(lambda: owner.results)
        await owner.leave()
        owner.results.clear()
        await owner.publish(capability, "early", node="early")
        await eventually(lambda: fleet.runtime.load().suspended == 1)
        assert await fleet.client.request(capability, "direct", timeout="10s") == "direct"

        owner.decide = granting(fence=2)
        await owner.open()
        await eventually(lambda: owner.results)

        assert (owner.values, owner.results[0].owner.fence) == (["early"], 2)
        assert [wanted for wanted, _, _ in gated.runs] == ["first", "early", "direct"]


async def test_cancel_reaches_it(servers: Servers, settings: Settings, capability: str, shard: int) -> None:
    gated = Gated(capability)
    async with running(gated.agent, servers, settings=settings), owner_of(shard, settings) as owner:
        task_id = await owner.publish(capability, 1)
        await eventually(lambda: gated.runs)

        message = control_messages.cancel(task_id, reason="enough", publication=1)
        await owner.broker.publish(message, exchange=routing.BROADCAST, routing_key="")
        await eventually(lambda: owner.results)

        assert owner.results[0].outcome.status is Status.CANCELED
