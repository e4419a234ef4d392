"""What follows on a lone result: it goes straight to the agent that is free by it, or to whoever takes it first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coditect import Agent, Context, Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import agent_queues, base_topology, capability_queues
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.task import Task
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.tasks import read_task
from coditect.workflow.definition import Definition
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.effects import NodeKey, Publication, Transition
from dispatcher.ledger.rows import NodeRecord
from dispatcher.shards.in_flight import InFlight
from dispatcher.shards.publishing.publisher import ShardPublisher
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed

WORK = "work"
FREE = AgentId("free-1")


def flow(*capabilities: str) -> Definition:
    """A chain of these."""
    made = Workflow("flow")
    before: list[Any] = []
    for number, capability in enumerate(capabilities):
        before = [made.task(capability, 1, name=f"n{number}", after=before)]
    return made.definition()


async def ended(ledger: Ledger, *, free: bool = True, **changed: Any) -> list[str]:
    """The agents that what follows on the first publication goes to."""
    first = ledger.published.pop(0)
    await ledger.batch(replace(ledger.finished(first, completed(1)), free=free, **changed))
    return [publication.agent for publication in ledger.published]


async def test_next_node_goes_to_the_agent_that_is_free(ledger: Ledger) -> None:
    await ledger.start(flow(WORK, WORK))

    assert await ended(ledger) == [AGENT]


async def test_next_node_goes_to_anybody_when_its_agent_is_not_free(ledger: Ledger) -> None:
    await ledger.start(flow(WORK, WORK))

    assert await ended(ledger, free=False) == [""]


async def test_next_node_of_another_capability_goes_to_anybody(ledger: Ledger) -> None:
    await ledger.start(flow(WORK, "other", WORK))

    assert await ended(ledger) == [""]
    assert await ended(ledger, free=False) == [""], "nobody is free for it by what ended before"


async def test_one_of_several_that_follow_goes_to_it(ledger: Ledger) -> None:
    wide = Workflow("wide")
    top = wide.task(WORK, 0, name="top")
    for number in range(3):
        wide.task(WORK, number, name=f"n{number}", after=[top])
    await ledger.start(wide.definition())

    assert sorted(await ended(ledger)) == ["", "", AGENT]


async def test_where_more_is_told_the_broker_balances(ledger: Ledger) -> None:
    for workflow in ("a", "b"):
        await ledger.start(flow(WORK, WORK), workflow=workflow)
    both = [replace(ledger.finished(one, completed(1)), free=True) for one in ledger.published]
    ledger.published.clear()

    await ledger.batch(*both)

    assert [publication.agent for publication in ledger.published] == ["", ""]


async def test_what_is_tried_again_goes_to_anybody(ledger: Ledger) -> None:
    await ledger.start(flow(WORK, WORK))
    first = ledger.published.pop()

    await ledger.batch(replace(ledger.finished(first, replace(failed(retryable=True), retry_ms=1)), free=True))
    await ledger.pass_time(1)

    assert [publication.agent for publication in ledger.published] == [""]


async def test_in_a_cluster_everything_goes_to_anybody() -> None:
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database, follow_on=False)
        await ledger.start(flow(WORK, WORK))

        assert await ended(ledger) == [""]


# -- on its way ---------------------------------------------------------------------------------------------


async def sent(broker: MemoryBroker) -> list[BaseException | None]:
    """What came of a publication to that agent."""
    told: list[BaseException | None] = []
    task = Task(WORK, Priority.P1, b"{}", id=TaskId("one"), published_at_ms=7)
    ShardPublisher(broker, lambda _, error: told.append(error)).send(Publication(NodeKey("w", "n"), 1, task, FREE))
    await eventually(lambda: bool(told))
    return told


async def test_it_goes_to_that_agents_queue() -> None:
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker:
        await broker.declare(base_topology() + capability_queues(WORK) + agent_queues(FREE, slots=1))

        told = await sent(broker)

        delivery = await broker.get(routing.next_queue(FREE))
        assert delivery is not None
        task = read_task(delivery.message, delivery.routing_key)
        assert (told, task.id, routing.key_of(task), task.published_at_ms) == ([None], "one", f"{WORK}.p1", 7)


@pytest.mark.parametrize("full", [True, False], ids=["full", "gone"])
async def test_it_goes_to_anybody_and_is_claimed_when_that_agents_queue_does_not_take_it(full: bool) -> None:
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker:
        await broker.declare(base_topology() + capability_queues(WORK))
        if full:
            await broker.declare(agent_queues(FREE, slots=1))
            for _ in range(2):
                await broker.publish(Message(b"1"), exchange=routing.AGENTS, routing_key=routing.next_key(FREE))

        told = await sent(broker)

        delivery = await broker.get(routing.task_queue(WORK, Priority.P1))
        assert delivery is not None
        task = read_task(delivery.message, delivery.routing_key)
        assert (told, task.id, task.published_at_ms) == ([None], "one", None)


def test_start_from_an_agents_own_queue_says_nothing_of_the_capabilitys() -> None:
    in_flight = InFlight(Capacity(lambda: 0.0))
    node_key = NodeKey("w", "n")

    def move(state: TaskState, publication: int) -> None:
        row = NodeRecord(state, publication=publication, fence=1, agent=AGENT if state is TaskState.WORKING else "")
        in_flight.follow(Transition(node_key, state, WORK, "p1", row), 0.0)

    move(TaskState.PUBLISHED, 7)
    in_flight.set_apart(node_key)
    move(TaskState.WORKING, 7)
    apart = dict(in_flight.started)
    move(TaskState.PUBLISHED, 8)
    move(TaskState.COMPLETED, 8)

    assert (apart, in_flight.started) == ({}, {(WORK, "p1"): 8})


# -- with agents --------------------------------------------------------------------------------------------


def walker(*, slots: int = 4) -> tuple[Agent, list[tuple[str, str, int]]]:
    """An agent whose tasks take as long as they say, and its runs: agent process, node, attempt."""
    runs: list[tuple[str, str, int]] = []
    agent = Agent("walker", slots=slots)

    @agent.capability(WORK, timeout="2h")
    async def walk(seconds: float, ctx: Context) -> float:
        runs.append((ctx.agent_id, ctx.task_id.rpartition(":")[2], ctx.attempt))
        await asyncio.sleep(seconds)
        return seconds

    return agent, runs


async def test_chain_stays_with_its_agent() -> None:
    agent, runs = walker()
    async with TestFleet(agents=[agent], replicas=3) as fleet:
        run = await fleet.start(flow(*[WORK] * 6))

        await run.result(timeout="1h")

    assert len({agent_id for agent_id, _, _ in runs}) == 1
    assert [(node, attempt) for _, node, attempt in runs] == [(f"n{number}", 1) for number in range(6)]


@pytest.mark.parametrize(
    ("fault", "within_seconds"),
    [(TestFleet.kill, 1.0), (TestFleet.pause, 5.0), (TestFleet.drop_connections, 1.0)],
    ids=["killed", "stopped", "cut off"],
)
async def test_chain_goes_on_elsewhere(fault: Callable[[TestFleet, str], object], within_seconds: float) -> None:
    agent, runs = walker()
    async with TestFleet(agents=[agent], replicas=2, seed=3) as fleet:
        run = await fleet.start(flow(*[WORK] * 4))
        await fleet.advance("2500ms")
        first, node, _ = runs[-1]

        fault(fleet, first)
        await run.result(timeout="1h")

        again = [(agent_id, attempt) for agent_id, name, attempt in runs if name == node]
        assert again[0] == (first, 1)
        assert len(again) <= 2
        assert fleet.elapsed_seconds <= 4 + 1 + within_seconds
        assert len(runs) <= 5


async def test_chain_of_an_agent_that_drains_goes_on_elsewhere() -> None:
    agent, runs = walker()
    async with TestFleet(agents=[agent], replicas=2) as fleet:
        run = await fleet.start(flow(*[WORK] * 4))
        await fleet.advance("2500ms")

        await fleet.drain(runs[-1][0])
        await run.result(timeout="1h")

        assert [(node, attempt) for _, node, attempt in runs] == [(f"n{number}", 1) for number in range(4)]
        assert len({agent_id for agent_id, _, _ in runs}) == 2
        assert fleet.elapsed_seconds <= 6


async def test_urgent_chain_is_not_held_up_where_only_the_slot_is_left_that_is_kept_for_it() -> None:
    agent, runs = walker(slots=2)
    urgent = Workflow("urgent")
    before: list[Any] = []
    for number in range(5):
        before = [urgent.task(WORK, 0.02, name=f"n{number}", after=before, priority="p0")]
    async with TestFleet(agents=[agent]) as fleet:
        await fleet.submit(WORK, 3600.0, durable=True)
        await fleet.advance("100ms")
        began = fleet.elapsed_seconds

        await (await fleet.start(urgent)).result(timeout="1h")

        assert len(runs) == 6
        assert fleet.elapsed_seconds - began < 0.2
