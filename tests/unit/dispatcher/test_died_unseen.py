"""Agents that die unseen, what is granted to them after their death, and clients that hold a lock meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from coditect import Agent, Context, Retry, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.client.workflow_run import Run
from coditect.model.ids import AgentId
from coditect.model.task import Owner
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.claims import claim_body
from coditect.wire.control import Verb, request
from coditect.workflow.states import WorkflowState
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.store.memory import Disk, MemoryDatabase

AWAY_SECONDS = 10
"""Longer than an agent's lease in the registry: when the dispatcher is back, nothing lists the dead agent."""
SOON_SECONDS = 15.0
"""Well below the minute after which a key that nobody renews is free."""


class LastingFleet(TestFleet):
    """A fleet whose dispatcher finds its store again when it comes back, and has no management API.

    With one, it would find the dead by their queues as well.
    """

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        disk = Disk()

        @asynccontextmanager
        async def dispatcher(*, owner: str, **ports: Any) -> AsyncIterator[Any]:
            options = DispatcherOptions(shards=1, owner=owner)
            async with (
                MemoryDatabase(disk) as database,
                running_dispatcher(database=database, options=options, **ports | {"evict": None}) as running,
            ):
                yield running

        return {"dispatcher": dispatcher}


def builder(started: list[str], concurrency: tuple[str, int] | None = ("{input}", 1)) -> Agent:
    agent = Agent("builder", slots=2)

    @agent.capability("repo.build", concurrency=concurrency)
    async def build(repo: str, ctx: Context) -> str:
        started.append(ctx.agent_id)
        await asyncio.sleep(20.0)
        return ctx.agent_id

    return agent


async def test_keys_of_an_agent_that_died_while_no_dispatcher_was_there_are_soon_free() -> None:
    started: list[str] = []
    async with LastingFleet(agents=[builder(started)], replicas=2) as fleet:
        handle = await fleet.submit("repo.build", "search")
        await fleet.advance("1s")
        (holder,) = started
        fleet.kill("dispatcher")
        fleet.kill(holder)
        await fleet.advance(f"{AWAY_SECONDS}s")

        await fleet.restart("dispatcher")
        back = fleet.elapsed_seconds
        while len(started) == 1:
            await asyncio.sleep(0.1)

        assert fleet.elapsed_seconds - back < SOON_SECONDS
        assert await handle.result(str) == started[1] != holder


async def test_lock_of_a_client_and_key_of_a_living_agent_outlive_the_absence_of_every_dispatcher() -> None:
    started: list[str] = []
    async with LastingFleet(agents=[builder(started)], replicas=2) as fleet:
        handle = await fleet.submit("repo.build", "search")
        async with fleet.client.lock("site") as lock:
            await fleet.advance("1s")
            fleet.kill("dispatcher")
            await fleet.advance("4s")
            await fleet.restart("dispatcher")
            await fleet.advance(f"{SOON_SECONDS}s")

            assert [row.fence async for row in fleet.client.locks(resource="site")] == [lock.fence]
        assert await handle.result(str) == started[0]

    assert len(started) == 1


async def grant_late(fleet: TestFleet, run: Run, dead: str) -> None:
    """A request of an agent that is gone by now is answered, and takes the node from whoever works on it."""
    *_, last = [row async for row in run.attempts()]
    owner = Owner(run.id, last.node, "0", last.fence)
    body = claim_body(owner, publication=last.publication, agent=AgentId(dead), running=False)
    async with MemoryBroker(fleet.server, name="late") as broker:
        message = request(Verb.CLAIM, body, reply_to=f"reply.{dead}", correlation_id="late")
        await broker.publish(message, exchange=routing.CONTROL, routing_key="0")
    await fleet.advance("0.1s")
    *_, last = [row async for row in run.attempts()]
    assert (last.agent, last.status) == (dead, "working")


@pytest.mark.parametrize("unseen", [False, True], ids=["before", "while no dispatcher was there"])
async def test_task_that_is_granted_to_a_dead_agent_is_published_again(unseen: bool) -> None:
    started: list[str] = []
    flow = Workflow("late")
    flow.task("repo.build", "search", name="build", retry=Retry(max_attempts=5))
    async with LastingFleet(agents=[builder(started, None)], replicas=2) as fleet:
        run = await fleet.client.start(flow)
        await fleet.advance("1s")
        (dead,) = started
        fleet.kill(dead)
        if not unseen:
            await fleet.advance(f"{AWAY_SECONDS}s")
        await grant_late(fleet, run, dead)
        if unseen:
            fleet.kill("dispatcher")
            await fleet.advance(f"{AWAY_SECONDS}s")
            await fleet.restart("dispatcher")

        begun = len(started)
        await fleet.advance(f"{SOON_SECONDS}s")

        assert len(started) == begun + 1
        assert await run.wait(timeout="2m") is WorkflowState.COMPLETED
