"""The orphan detector: what it takes for lost, and that time in which nobody could be heard is no silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from coditect import Agent, Context, Workflow
from coditect.aio.clock import Clock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import agent_queues, base_topology, capability_queues, shard_queues
from coditect.errors import PublishUnconfirmed
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.json import dumps, loads
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import Command, Lost
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.nodes.attempts import DELIVERY_LOST, DIED, HEARTBEAT
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.recover import learn
from dispatcher.liveness.ping import Pings
from dispatcher.shards.in_flight import EARLY_ACK_MS, InFlight
from dispatcher.shards.orphans import LOOK_SECONDS, OrphanDetector
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.memory import MemoryDatabase
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_ledger import Ledger

WORK = "code.review"
AGENT = "worker-1"
NOW_MS = 10_000_000


@dataclass
class Mailbox:
    """An agent's, as far as pings go."""

    broker: MemoryBroker
    has_it: bool
    meanwhile: Callable[[], None] = lambda: None
    """Called when it is asked."""
    asked: int = 0

    def take(self, delivery: Delivery) -> None:
        message = delivery.message
        self.asked += 1
        self.meanwhile()
        told = {"agent_id": AGENT, "task": {"capability": WORK} if self.has_it else None}
        address = routing.reply_address(message.reply_to)
        assert address is not None
        assert loads(message.body) == {"task_id": "w:n7"}
        pong = Message(dumps(told), correlation_id=message.correlation_id, type="coditect.pong.v1")
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.broker.post(pong, sent, exchange=address.exchange, routing_key=address.routing_key)
        delivery.ack()


@dataclass
class Walked:
    """A shard worker, a clock that somebody sets, and an orphan detector that a test has look."""

    server: MemoryServer
    broker: MemoryBroker
    shard: int = 0
    closed: bool = False
    set_ms: int = NOW_MS
    in_flight: InFlight = field(default_factory=lambda: InFlight(Capacity(lambda: 0.0)))
    lost: list[Command] = field(default_factory=list)

    def put(self, command: Command) -> None:
        self.lost.append(command)  # which waits for as long as the test lasts

    def now_ms(self) -> int:
        return self.set_ms

    def open(self, pings: Pings) -> None:
        self.detector = OrphanDetector(cast(ShardWorker, self), self.broker, cast(Clock, self), pings)

    async def answer(self, *, has_it: bool) -> Mailbox:
        """The agent reads its mailbox and says whether it has what it is asked for."""
        mailbox = Mailbox(self.broker, has_it)
        await self.broker.declare(agent_queues(AgentId(AGENT), slots=1))
        await self.broker.consume(routing.mailbox_queue(AgentId(AGENT)), mailbox.take, prefetch=10)
        return mailbox

    async def tell(self) -> None:
        """Something about another node waits to be heard."""
        await self.broker.publish(Message(body=b"1"), exchange=routing.RESULTS, routing_key=str(self.shard))

    async def walk(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_SECONDS)):
            await asyncio.sleep(LOOK_SECONDS)
            await self.detector.look()

    def move(
        self, number: int, state: TaskState = TaskState.PUBLISHED, *, level: str = "p1", age_ms: int = 0
    ) -> NodeKey:
        node_key = NodeKey("w", f"n{number}")
        agent = AGENT if state is TaskState.WORKING else ""
        row = NodeRecord(state, publication=number, fence=1, agent=agent, published_ms=NOW_MS - age_ms)
        self.in_flight.follow(Transition(node_key, state, WORK, level, row), asyncio.get_running_loop().time())
        return node_key

    async def fill(self, level: Priority = Priority.P1) -> None:
        """Something lies in the queue."""
        await self.broker.publish(
            Message(body=b"1"), exchange=routing.SUBMIT, routing_key=routing.task_key(WORK, level)
        )


@asynccontextmanager
async def opened() -> AsyncIterator[Walked]:
    server = MemoryServer()
    async with MemoryBroker(server, name="dispatcher") as broker:
        await broker.declare(base_topology() + capability_queues(WORK) + shard_queues(0))
        walked = Walked(server, broker)
        async with Pings(broker, name="pings") as pings:
            walked.open(pings)
            yield walked


@pytest.mark.parametrize(("queue", "lost"), [("empty", True), ("missing", True), ("full", False)])
@in_virtual_time
async def test_publication_that_nobody_starts_is_lost_when_its_queue_has_nothing(queue: str, lost: bool) -> None:
    async with opened() as walked:
        if queue == "full":
            await walked.fill()
        elif queue == "missing":
            await walked.broker.delete_queue(routing.task_queue(WORK, Priority.P1))
        node_key = walked.move(7)

        await walked.walk(60)
        early = list(walked.lost)
        await walked.walk(LOOK_SECONDS)

        assert early == []
        assert walked.lost == ([Lost(node_key, 7)] if lost else [])


@pytest.mark.parametrize(
    ("later", "ends", "level", "lost"),
    [
        (8, TaskState.WORKING, "p1", True),
        (8, TaskState.COMPLETED, "p1", True),
        (8, TaskState.CANCELED, "p1", False),
        (8, TaskState.COMPLETED, "p2", False),
        (6, TaskState.COMPLETED, "p1", False),
    ],
    ids=["runs", "ran", "never ran", "another queue", "an earlier one"],
)
@in_virtual_time
async def test_publication_is_lost_that_a_later_one_of_its_queue_overtook_long_ago(
    later: int, ends: TaskState, level: str, lost: bool
) -> None:
    async with opened() as walked:
        await walked.fill()
        node_key = walked.move(7)
        walked.move(later, level=level)
        await walked.walk(30)
        walked.move(later, ends, level=level)

        await walked.walk(60)
        early = list(walked.lost)
        await walked.walk(120)

        assert early == [], "the later one started less than 60 s ago"
        assert walked.lost[:1] == ([Lost(node_key, 7)] if lost else [])


@pytest.mark.parametrize(("age_ms", "lost"), [(EARLY_ACK_MS + 1, True), (EARLY_ACK_MS, False)])
@in_virtual_time
async def test_silent_agent_is_gone_when_nothing_redelivers_what_it_had(age_ms: int, lost: bool) -> None:
    async with opened() as walked:
        await walked.fill()  # it may lie there, unless it was acked
        node_key = walked.move(7, TaskState.WORKING, age_ms=age_ms)
        for _ in range(10):
            await walked.walk(20)
            walked.in_flight.hear(node_key, 1, asyncio.get_running_loop().time())

        await walked.walk(60)
        early = list(walked.lost)
        await walked.walk(LOOK_SECONDS)

        assert early == []
        assert walked.lost == ([Lost(node_key, 7, AGENT, HEARTBEAT)] if lost else [])


@pytest.mark.parametrize(
    ("answers", "queue", "waits", "lost"),
    [
        (False, "empty", False, True),
        (False, "empty", True, False),
        (False, "full", False, False),
        (True, "empty", False, False),
        (None, "empty", False, True),
        (None, "empty", True, False),
        (None, "full", False, False),
    ],
    ids=[
        "without it",
        "its end may wait",
        "it may lie there",
        "has it",
        "gone",
        "gone, its end may wait",
        "gone, it may lie there",
    ],
)
@in_virtual_time
async def test_what_was_begun_is_lost_when_neither_its_agent_nor_the_broker_has_it(
    answers: bool | None, queue: str, waits: bool, lost: bool
) -> None:
    async with opened() as walked:
        if answers is not None:
            await walked.answer(has_it=answers)
        if queue == "full":
            await walked.fill()
        if waits:
            await walked.tell()
        node_key = walked.move(7, TaskState.WORKING)
        walked.move(8)

        await walked.walk(60)
        walked.move(8, TaskState.COMPLETED)  # which says nothing of what had begun: it is given to others first
        early = list(walked.lost)
        await walked.walk(LOOK_SECONDS)
        soon = list(walked.lost)
        await walked.walk(180)

        assert early == []
        assert soon == ([Lost(node_key, 7, AGENT, DIED if answers is None else DELIVERY_LOST)] if lost else [])
        assert bool(walked.lost) is lost


@pytest.mark.parametrize(
    ("answers", "lost"), [(None, True), (False, True), (True, False)], ids=["gone", "no", "has it"]
)
@in_virtual_time
async def test_what_was_begun_is_lost_though_its_queue_is_never_empty(answers: bool | None, lost: bool) -> None:
    async with opened() as walked:
        if answers is not None:
            await walked.answer(has_it=answers)
        await walked.fill()
        node_key = walked.move(7, TaskState.WORKING)
        await walked.walk(60 + LOOK_SECONDS)

        walked.move(8)  # whatever lay in the queue when the search began is delivered before it
        await walked.walk(180)
        early = list(walked.lost)
        walked.move(8, TaskState.COMPLETED)
        await walked.walk(60)
        early += walked.lost
        await walked.walk(70)

        assert early == []
        assert walked.lost == ([Lost(node_key, 7, AGENT, DIED if answers is None else DELIVERY_LOST)] if lost else [])


@in_virtual_time
async def test_search_begins_again_with_a_sign_of_life() -> None:
    async with opened() as walked:
        await walked.fill()
        node_key = walked.move(7, TaskState.WORKING)
        await walked.walk(60 + LOOK_SECONDS)
        walked.move(8)
        walked.move(8, TaskState.COMPLETED)
        await walked.walk(60)
        walked.in_flight.hear(node_key, 1, asyncio.get_running_loop().time())

        await walked.walk(240)

        assert walked.lost == [], "it may have come back to the queue since"


@in_virtual_time
async def test_what_is_heard_of_while_its_agent_is_asked_is_not_lost() -> None:
    async with opened() as walked:
        mailbox = await walked.answer(has_it=False)
        node_key = walked.move(7, TaskState.WORKING)
        mailbox.meanwhile = lambda: walked.in_flight.hear(node_key, 1, asyncio.get_running_loop().time())

        await walked.walk(60 + LOOK_SECONDS)

        assert (mailbox.asked, walked.lost) == (1, [])


@in_virtual_time
async def test_who_says_that_it_has_what_was_begun_is_asked_again_when_it_was_silent_again() -> None:
    async with opened() as walked:
        mailbox = await walked.answer(has_it=True)
        walked.move(7, TaskState.WORKING)

        await walked.walk(60 + LOOK_SECONDS)
        asked = mailbox.asked
        await walked.walk(60)
        again = mailbox.asked
        await walked.walk(LOOK_SECONDS)

        assert (asked, again, mailbox.asked, walked.lost) == (1, 1, 2, [])


@pytest.mark.parametrize("state", [TaskState.PUBLISHED, TaskState.WORKING])
@pytest.mark.parametrize("what", ["pause", "away", "alarm", "clock"])
@in_virtual_time
async def test_time_in_which_nobody_could_be_heard_is_no_silence(what: str, state: TaskState) -> None:
    async with opened() as walked:
        node_key = walked.move(7, state, age_ms=EARLY_ACK_MS + 1)
        await walked.walk(30)

        match what:
            case "pause":
                await asyncio.sleep(600)
            case "away":
                walked.server.stop()
                await walked.walk(180)
                walked.server.start()
                await asyncio.sleep(2)
            case "alarm":
                walked.server.block()
                held = asyncio.ensure_future(walked.fill(Priority.P2))  # the broker tells whoever publishes
                await walked.walk(180)
                walked.server.unblock()
                with pytest.raises(PublishUnconfirmed):
                    await held
            case "clock":
                walked.set_ms += 3_600_000
                walked.in_flight.hear(node_key, 1, asyncio.get_running_loop().time())
        await walked.walk(60)
        early = list(walked.lost)
        await walked.walk(2 * LOOK_SECONDS)

        assert early == []
        assert [cast(Lost, one).node_key for one in walked.lost] == [node_key]


async def test_who_takes_a_shard_over_looks_into_the_queue_of_the_node_s_level() -> None:
    flow = Workflow("levels")
    for level in Priority:
        flow.task(WORK, name=level.value, priority=level)
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition())

        found = (await database.read(lambda tr: learn(tr, 0))).in_flight

    assert {moved.node_key.node: (moved.capability, moved.level) for moved in found} == {
        level.value: (WORK, level.value) for level in Priority
    }


async def test_long_node_outlives_a_time_without_the_broker() -> None:
    fences: list[int] = []
    agent, flow = Agent("long"), Workflow("long")
    flow.task("long.work", name="only")

    @agent.capability("long.work", timeout="1h")
    async def work(_: None, ctx: Context) -> None:
        fences.append(ctx.fence)
        await asyncio.sleep(1_200)

    async with TestFleet(agents=[agent]) as fleet:
        run = await fleet.client.start(flow)
        await fleet.advance("11m")

        fleet.server.stop()
        await fleet.advance("2m")
        fleet.server.start()

        assert await run.wait(timeout="2h") is WorkflowState.COMPLETED
        assert fences == [1]
