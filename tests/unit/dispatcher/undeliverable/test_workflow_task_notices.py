"""What the broker gave up, and what nobody can read, reaches the workflow that owns it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coditect import Agent, Retry, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.client.workflow_run import Run
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing, tasks
from coditect.wire.json import dumps
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Claimed, Finished
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed

BODIES = (b"{", b"\xff", b"")


class Sleeper:
    """Its first execution never ends; whoever has it is killed."""

    def __init__(self) -> None:
        self.executions = 0
        self.agent = Agent("sleeper", slots=1)
        self.agent.capability("sleep", retry=Retry(max_attempts=2, first="10ms"))(self.sleep)

    async def sleep(self, task: dict[str, Any]) -> str:
        self.executions += 1
        if self.executions == 1:
            await asyncio.sleep(3600)
        return "slept"


def one(capability: str = "sleep") -> Workflow:
    flow = Workflow("one")
    flow.task(capability, name="only")
    return flow


async def node(run: Run) -> Any:
    (row,) = [row async for row in run.nodes()]
    return row


async def taken(fleet: TestFleet, queue: str) -> Message:
    """The message in the queue, taken out of it."""
    async with MemoryBroker(fleet.server, name="person") as broker:
        delivery = await broker.get(queue)
        assert delivery is not None
        delivery.ack()
        return delivery.message


async def test_task_that_the_broker_gave_up_fails_its_node() -> None:
    sleeper = Sleeper()
    async with TestFleet(agents=[sleeper.agent]) as fleet:
        fleet.kill("sleeper")
        run = await fleet.client.start(one())
        await fleet.settled()

        async with MemoryBroker(fleet.server, name="thief") as broker:
            delivery = await broker.get(routing.task_queue("sleep", Priority.P1))
            assert delivery is not None
            delivery.reject()
        await fleet.settled()

        assert await run.wait(timeout="1m") is WorkflowState.REJECTED
        row = await node(run)
        assert (row.state, row.reason) == (TaskState.REJECTED, "rejected")


async def test_dead_letter_of_an_agent_that_names_an_owner_is_ignored() -> None:
    sleeper = Sleeper()
    async with TestFleet(agents=[sleeper.agent]) as fleet:
        run = await fleet.client.start(one())
        await fleet.advance(1)
        headers = {tasks.WORKFLOW: run.id, tasks.NODE: "only", tasks.ORIGIN: "0", tasks.FENCE: 1, tasks.PUBLICATION: 1}
        async with MemoryBroker(fleet.server, name="agent") as broker:
            await broker.publish(Message(b"null", headers), exchange=routing.DEAD, routing_key="sleep.p1")
        await fleet.settled()

        assert (await node(run)).state is TaskState.WORKING


@pytest.mark.parametrize(
    ("body", "kind"), [*((body, tasks.RESULT_TYPE) for body in BODIES), (b"null", "coditect.result.v2")]
)
async def test_result_that_nobody_can_read_is_a_failed_attempt_and_a_dead_letter(body: bytes, kind: str) -> None:
    sleeper = Sleeper()
    async with TestFleet(agents=[sleeper.agent]) as fleet:
        run = await fleet.client.start(one())
        await fleet.settled()
        shard = (await run.overview()).shard
        row = await node(run)
        owner = {tasks.WORKFLOW: run.id, tasks.NODE: "only", tasks.ORIGIN: str(shard), tasks.FENCE: row.fence}
        message = Message(
            body,
            {**owner, tasks.PUBLICATION: 1, tasks.STATUS: "completed"},
            type=kind,
            message_id="broken",
        )
        async with MemoryBroker(fleet.server, name="agent") as broker:
            await broker.publish(message, exchange=routing.RESULTS, routing_key=str(shard))
        fleet.kill("sleeper")
        await fleet.restart("sleeper")

        assert await run.wait(timeout="1m") is WorkflowState.COMPLETED
        failures = [(one.attempt, one.reason) async for one in run.attempts() if one.status == "failed"]
        assert failures == [(1, "unreadable_result")]
        assert (await taken(fleet, routing.UNROUTED_QUEUE)).message_id == "broken"


@pytest.mark.parametrize("other", [0, 7])
async def test_result_without_a_fence_counts_for_its_publication_only(other: int) -> None:
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(one().definition())
        (published,) = ledger.published

        await ledger.batch(Finished(published.node_key, 0, other, completed()))
        assert (await ledger.node("only")).state is TaskState.PUBLISHED

        (claim,) = await ledger.batch(Claimed(published.node_key, published.number, AGENT))
        assert claim.fence == 2

        await ledger.batch(Finished(published.node_key, 0, published.number, failed()))
        assert (await ledger.node("only")).state is TaskState.FAILED


async def test_message_that_does_not_even_say_whose_it_is_becomes_a_dead_letter() -> None:
    async with TestFleet() as fleet, MemoryBroker(fleet.server, name="agent") as broker:
        for headers in ({}, {tasks.WORKFLOW: 7}, {tasks.FENCE: "x", tasks.WORKFLOW: "w", tasks.NODE: "n"}):
            message = Message(dumps(1), {**headers, tasks.STATUS: "completed"}, type=tasks.RESULT_TYPE)
            await broker.publish(message, exchange=routing.RESULTS, routing_key="0")
        await fleet.settled()

        stats = await broker.stats(routing.UNROUTED_QUEUE)
        assert stats is not None
        assert stats.messages == 3
