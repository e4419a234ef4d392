"""Workflows and durable tasks from the client to agents and back, on real servers with a dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chaos.simulated_store import Disk, SimulatedDatabase
from coditect import Agent, From, Retry, Workflow
from coditect.aio.clock import SystemClock
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.client import Client
from coditect.client.options import Options
from coditect.model.result import Status
from coditect.registry.redis import RedisRegistry
from coditect.workflow.rows import ApprovalRow
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.program import DispatcherOptions, running_dispatcher
from tests.fleet import Running, remove_queues, running
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers

SECONDS = 60.0
FEW = DispatcherOptions(shards=2)


class Worker:
    """An agent that doubles, fails on the unlucky, and holds what it is told to hold."""

    def __init__(self, capability: str) -> None:
        self.capability = capability
        self.unlucky = {13}
        self.held = asyncio.Event()
        self.ended: list[int] = []
        self.agent = Agent("worker", slots=20)
        self.agent.capability(capability, retry=Retry(max_attempts=2, first="10ms"))(self.double)

    async def double(self, number: int) -> int:
        """Negative numbers are held until they are canceled."""
        if number in self.unlucky:
            raise ValueError("no luck")
        if number < 0:
            self.held.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.ended.append(number)
        return 2 * number


@asynccontextmanager
async def dispatching(servers: Servers, fleet: Running, disk: Disk) -> AsyncIterator[None]:
    """A dispatcher in this process, with a ledger that outlives it."""
    async with (
        SimulatedDatabase(disk) as database,
        AmqpBroker(servers.amqp_url, name="dispatcher") as own,
        running_dispatcher(broker=own, registry=fleet.registry, clock=SystemClock(), database=database, options=FEW),
    ):
        yield


@pytest.fixture
def worker(capability: str) -> Worker:
    return Worker(capability)


@pytest.fixture
async def fleet(servers: Servers, worker: Worker) -> AsyncIterator[Running]:
    async with running(worker.agent, servers) as fleet:
        yield fleet


async def test_a_workflow_goes_from_its_start_over_an_approval_to_its_value(
    servers: Servers, fleet: Running, worker: Worker
) -> None:
    flow = Workflow("whole")
    numbers = flow.map(worker.capability, "input.numbers", From("item"), limit=10, name="numbers")
    gate = flow.approval("Go on?", name="gate", after=[numbers])
    flow.task(worker.capability, From("sum(results.numbers)"), name="sum", after=[numbers, gate])
    asked: list[ApprovalRow] = []

    async with dispatching(servers, fleet, Disk()):
        run = await fleet.client.start(flow, {"numbers": [1, 2, 3]}, idempotency_key="whole-1")
        again = await fleet.client.start(flow, {"numbers": []}, idempotency_key="whole-1")

        async def waits() -> bool:
            asked[:] = [row async for row in fleet.client.approvals.list() if row.workflow == run.id]
            return bool(asked)

        await eventually(waits, seconds=SECONDS)
        await run.grant(asked[0].node, by="ada")
        value = await run.result(int, timeout=SECONDS)
        nodes = {row.name: row async for row in run.nodes()}
        attempts = [row async for row in run.attempts()]
        overview = await run.overview()

    assert (again.id, value, asked[0].question) == (run.id, 24, "Go on?")
    assert {name: row.state for name, row in nodes.items()} == dict.fromkeys(
        ["gate", "numbers", "numbers[0]", "numbers[1]", "numbers[2]", "sum"], TaskState.COMPLETED
    )
    assert nodes["gate"].agent == "ada"
    assert sorted(attempt.node for attempt in attempts) == ["numbers[0]", "numbers[1]", "numbers[2]", "sum"]
    assert all(attempt.agent == fleet.runtime.agent_id and attempt.finished_at_ms for attempt in attempts)
    assert (overview.state, overview.ended, overview.total) == (WorkflowState.COMPLETED, 6, 6)


async def test_a_durable_task_is_found_by_another_client_and_its_cancel_reaches_the_agent(
    servers: Servers, fleet: Running, worker: Worker
) -> None:
    async with (
        dispatching(servers, fleet, Disk()),
        RedisRegistry(servers.redis_url) as registry,
        Client(fleet.broker, registry) as other,
    ):
        done = await fleet.client.submit(worker.capability, 21, durable=True)
        held = await fleet.client.submit(worker.capability, -1, durable=True)
        value = await other.tasks.get(done.task_id).result(int, timeout=SECONDS)
        await asyncio.wait_for(worker.held.wait(), SECONDS)
        await other.tasks.cancel(held.task_id, reason="not needed")
        outcome = await held.outcome(timeout=SECONDS)
        await eventually(lambda: worker.ended == [-1], seconds=SECONDS)

    assert (value, outcome.status) == (42, "canceled")


async def test_a_wait_and_its_events_outlive_the_dispatcher(servers: Servers, fleet: Running, worker: Worker) -> None:
    flow = Workflow("outlived")
    flow.approval("Go on?", name="gate")
    disk = Disk()
    heard: list[str] = []

    async def listen() -> None:
        heard.extend([event.type async for event in run.events()])

    async with dispatching(servers, fleet, disk):
        run = await fleet.client.start(flow)
        waiting = asyncio.ensure_future(run.wait(timeout=SECONDS))
        event_stream = asyncio.ensure_future(listen())
        await asyncio.sleep(0)
    assert not waiting.done()

    async with dispatching(servers, fleet, disk):
        await run.grant("gate", by="ada")
        state = await waiting
        await asyncio.wait_for(event_stream, SECONDS)

    assert state is WorkflowState.COMPLETED
    assert heard[-1] == "workflow.completed"


@pytest.fixture
async def unserved(fleet: Running, worker: Worker) -> AsyncIterator[str]:
    """A capability that has queues, and no agent any more."""
    name = f"{worker.capability}.before"
    await fleet.broker.declare(base_topology() + capability_queues(name))
    yield name
    await remove_queues(fleet.broker, [name])


async def test_limits_of_time_hold_without_an_agent_and_over_a_dispatcher_s_end(
    servers: Servers, fleet: Running, worker: Worker, unserved: str
) -> None:
    disk = Disk()
    async with dispatching(servers, fleet, disk):
        waits = await fleet.client.submit(unserved, 1, options=Options(start_within="2s"), durable=True)
        runs = await fleet.client.submit(worker.capability, -1, options=Options(deadline="4s"), durable=True)
        await asyncio.wait_for(worker.held.wait(), SECONDS)

    async with dispatching(servers, fleet, disk):
        outcomes = [await handle.outcome(timeout=SECONDS) for handle in (waits, runs)]
        rows = [await handle.row() for handle in (waits, runs)]
        await eventually(lambda: worker.ended == [-1], seconds=SECONDS)

    assert [(outcome.status, outcome.failure and outcome.failure.reason) for outcome in outcomes] == [
        (Status.FAILED, "start_timeout"),
        (Status.FAILED, "deadline"),
    ]
    assert [(row.state, row.reason, row.started_at_ms is None) for row in rows] == [
        (TaskState.FAILED, "start_timeout", True),
        (TaskState.FAILED, "deadline", False),
    ]
