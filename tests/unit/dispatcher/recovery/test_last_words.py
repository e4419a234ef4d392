"""A dead agent's tasks are published again, but not while its last results may wait unread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, shard_queues
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.wire import routing
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import AgentFate, Command, Lost
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.rows import NodeRecord
from dispatcher.liveness.monitor import Monitor
from dispatcher.liveness.ping import PingAnswer
from dispatcher.recovery.failover import AtWork
from dispatcher.shards.completions import Settle
from dispatcher.shards.in_flight import SILENT_SECONDS, InFlight
from dispatcher.shards.worker import ShardWorker
from tests.unit.broker.virtual_time import in_virtual_time

DEAD = AgentId("worker-1")
NODE = NodeKey("w", "n1")


@dataclass
class BegunWork:
    """The worker of a shard with one node, which the agent that died had begun."""

    shard: int = 0
    closed: bool = False
    stalls: bool = False
    """The store applies nothing."""
    in_flight: InFlight = field(default_factory=lambda: InFlight(Capacity(lambda: 0.0)))
    lost: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        row = NodeRecord(TaskState.WORKING, publication=7, fence=1, agent=DEAD)
        now = asyncio.get_running_loop().time()
        self.in_flight.follow(Transition(NODE, TaskState.WORKING, "work", "p1", row), now)

    def put(self, command: Command, settle: Settle) -> None:
        self.lost.append(command)
        if not self.stalls:
            settle.done(None)


class OneDead:
    """A monitor that has found one agent dead."""

    def is_gone(self, agent: AgentId) -> bool:
        return agent == DEAD

    def suspect(self, names: Iterable[str]) -> None:
        assert set(names) <= {DEAD}


async def look(at_work: AtWork) -> None:
    """The dispatcher looks at the registry, where nobody is, and has half a second until the next look."""
    at_work.look(frozenset(), cast(Monitor, OneDead()))
    await asyncio.sleep(0.5)


@in_virtual_time
async def test_dead_agent_s_task_is_published_again_when_all_reports_have_been_read() -> None:
    worker = BegunWork()
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker, Supervisor() as background:
        await broker.declare(base_topology() + shard_queues(0))
        at_work = AtWork(broker, background, {0: cast(ShardWorker, worker)})
        await broker.publish(Message(body=b"1"), exchange=routing.RESULTS, routing_key="0")

        await look(at_work)
        assert worker.lost == []

        reading = await broker.consume(routing.results_queue(0), lambda told: told.ack(), prefetch=10)
        await asyncio.sleep(1)
        at_work.look(frozenset(), cast(Monitor, OneDead()))  # which is under way at the next look
        await look(at_work)
        await reading.cancel()
        assert worker.lost == [Lost(NODE, 7, DEAD)]


@in_virtual_time
async def test_dead_agent_s_task_waits_while_a_former_owner_may_hold_reports() -> None:
    worker = BegunWork()
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker, Supervisor() as background:
        await broker.declare(base_topology() + shard_queues(0))
        at_work = AtWork(broker, background, {0: cast(ShardWorker, worker)})
        former, _ = [
            await broker.consume(routing.results_queue(0), lambda told: told.ack(), prefetch=10) for _ in range(2)
        ]

        await look(at_work)
        assert worker.lost == []
        await former.cancel()
        await look(at_work)

    assert worker.lost == [Lost(NODE, 7, DEAD)]


@in_virtual_time
async def test_what_the_store_has_not_applied_yet_is_not_asked_for_again() -> None:
    worker = BegunWork(stalls=True)
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker, Supervisor() as background:
        await broker.declare(base_topology() + shard_queues(0))
        at_work = AtWork(broker, background, {0: cast(ShardWorker, worker)})
        for _ in range(20):
            await look(at_work)

    assert worker.lost == [Lost(NODE, 7, DEAD)]


@in_virtual_time
async def test_dead_agent_s_task_waits_no_longer_than_a_silent_one_for_reports_that_never_end() -> None:
    worker = BegunWork()
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker, Supervisor() as background:
        await broker.declare(base_topology() + shard_queues(0))
        at_work = AtWork(broker, background, {0: cast(ShardWorker, worker)})
        await broker.publish(Message(body=b"1"), exchange=routing.RESULTS, routing_key="0")

        await asyncio.sleep(SILENT_SECONDS - 1)
        await look(at_work)
        assert worker.lost == []
        await asyncio.sleep(1)
        await look(at_work)

        assert worker.lost == [Lost(NODE, 7, DEAD)]


@in_virtual_time
async def test_dead_agent_s_task_waits_while_the_broker_does_not_say_what_is_unread() -> None:
    worker = BegunWork()
    server = MemoryServer()
    async with MemoryBroker(server, name="dispatcher") as broker, Supervisor() as background:
        at_work = AtWork(broker, background, {0: cast(ShardWorker, worker)})

        await look(at_work)  # the queue is not there
        server.stop()
        await look(at_work)
        server.start()

    assert worker.lost == []


class Asked(OneDead):
    """A monitor of which each agent answers a question after a while that it lives without the task."""

    def __init__(self) -> None:
        self.open = self.most = self.asked = 0

    async def ask(self, agent: AgentId, task_id: str) -> PingAnswer:
        self.open, self.asked = self.open + 1, self.asked + 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.1)
        self.open -= 1
        return PingAnswer.WITHOUT


@in_virtual_time
async def test_doubts_about_many_tasks_are_settled_together_with_few_open_pings() -> None:
    worker, monitor, nodes = BegunWork(stalls=True), Asked(), 500
    for number in range(nodes):
        row = NodeRecord(TaskState.WORKING, publication=number + 8, fence=2, agent="w-2", doubted=[["w-1", 1]])
        worker.in_flight.follow(Transition(NodeKey("w", f"d{number}"), TaskState.WORKING, "work", "p1", row), 0.0)
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker, Supervisor() as background:
        await broker.declare(base_topology() + shard_queues(0))
        at_work = AtWork(broker, background, {0: cast(ShardWorker, worker)})
        background.start(at_work.settle_doubts(cast(Monitor, monitor)), name="settle doubts")

        await asyncio.sleep(5)

    assert (monitor.asked, monitor.most) == (nodes, 200)
    assert len({one.node_key for one in worker.lost if isinstance(one, AgentFate)}) == len(worker.lost) == nodes
