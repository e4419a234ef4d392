"""The orphan detector: what counts as lost, by which silence, and which time is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from chaos.simulated_store import SimulatedDatabase
from coditect import Agent, Context, Workflow
from coditect.agent.owners import BEAT_SECONDS, PROGRESS_PAUSE_SECONDS
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
from coditect.wire.control import Progress, Started, progress_message
from coditect.wire.json import dumps, loads
from coditect.wire.workflow_tasks import Claim, Verdict
from coditect.workflow.definition import LEAST_HEARTBEAT_MS
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import Began, Claimed, Command, Lost
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.nodes.attempts import DELIVERY_LOST, DIED, HEARTBEAT
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.recover import learn
from dispatcher.liveness.ping import Pings
from dispatcher.shards.in_flight import EARLY_ACK_MS, SILENT_SECONDS, Fate, InFlight
from dispatcher.shards.orphans import ORPHAN_CHECK_SECONDS, OrphanDetector
from dispatcher.shards.results import ResultsConsumer
from dispatcher.shards.worker import ShardWorker
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger

WORK = "code.review"
NOW_MS = 10_000_000


def now() -> float:
    return asyncio.get_running_loop().time()


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
        for _ in range(round(seconds / ORPHAN_CHECK_SECONDS)):
            await asyncio.sleep(ORPHAN_CHECK_SECONDS)
            await self.detector.look()

    def move(
        self, number: int, state: TaskState = TaskState.PUBLISHED, *, level: str = "p1", age_ms: int = 0
    ) -> NodeKey:
        node_key = NodeKey("w", f"n{number}")
        agent = AGENT if state is TaskState.WORKING else ""
        row = NodeRecord(state, publication=number, fence=1, agent=agent, published_ms=NOW_MS - age_ms)
        self.in_flight.follow(Transition(node_key, state, WORK, level, row), now())
        return node_key

    async def fill(self, level: Priority = Priority.P1) -> None:
        """Something lies in the queue."""
        key = routing.task_key(WORK, level)
        await self.broker.publish(Message(body=b"1"), exchange=routing.SUBMIT, routing_key=key)


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
        await walked.walk(ORPHAN_CHECK_SECONDS)

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
async def test_publication_that_was_overtaken_is_lost(later: int, ends: TaskState, level: str, lost: bool) -> None:
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
            walked.in_flight.hear(node_key, 1, now())

        await walked.walk(60)
        early = list(walked.lost)
        await walked.walk(ORPHAN_CHECK_SECONDS)

        assert early == []
        assert walked.lost == ([Lost(node_key, 7, AGENT, HEARTBEAT)] if lost else [])


BEGUN = {
    "without it": (False, "empty", False, True),
    "its end may wait": (False, "empty", True, False),
    "it may lie there": (False, "full", False, False),
    "has it": (True, "empty", False, False),
    "gone": (None, "empty", False, True),
    "gone, its end may wait": (None, "empty", True, False),
    "gone, it may lie there": (None, "full", False, False),
}


@pytest.mark.parametrize(("answers", "queue", "waits", "lost"), BEGUN.values(), ids=BEGUN)
@in_virtual_time
async def test_begun_work_is_lost_if_nobody_has_it(answers: bool | None, queue: str, waits: bool, lost: bool) -> None:
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
        await walked.walk(ORPHAN_CHECK_SECONDS)
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
        await walked.walk(60 + ORPHAN_CHECK_SECONDS)

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
        await walked.walk(60 + ORPHAN_CHECK_SECONDS)
        walked.move(8)
        walked.move(8, TaskState.COMPLETED)
        await walked.walk(60)
        walked.in_flight.hear(node_key, 1, now())

        await walked.walk(240)

        assert walked.lost == [], "it may have come back to the queue since"


@in_virtual_time
async def test_what_is_heard_of_while_its_agent_is_asked_is_not_lost() -> None:
    async with opened() as walked:
        mailbox = await walked.answer(has_it=False)
        node_key = walked.move(7, TaskState.WORKING)
        mailbox.meanwhile = lambda: walked.in_flight.hear(node_key, 1, now())

        await walked.walk(60 + ORPHAN_CHECK_SECONDS)

        assert (mailbox.asked, walked.lost) == (1, [])


@in_virtual_time
async def test_who_says_that_it_has_what_was_begun_is_asked_again_when_it_was_silent_again() -> None:
    async with opened() as walked:
        mailbox = await walked.answer(has_it=True)
        walked.move(7, TaskState.WORKING)

        await walked.walk(60 + ORPHAN_CHECK_SECONDS)
        asked = mailbox.asked
        await walked.walk(60)
        again = mailbox.asked
        await walked.walk(ORPHAN_CHECK_SECONDS)

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
                walked.in_flight.hear(node_key, 1, now())
        await walked.walk(60)
        early = list(walked.lost)
        await walked.walk(2 * ORPHAN_CHECK_SECONDS)

        assert early == []
        assert [cast(Lost, one).node_key for one in walked.lost] == [node_key]


async def test_who_takes_a_shard_over_looks_into_the_queue_of_the_node_s_level(ledger: Ledger) -> None:
    flow = Workflow("levels")
    for level in Priority:
        flow.task(WORK, name=level.value, priority=level)
    await ledger.start(flow)

    found = (await learn(ledger.database, 0)).active.in_flight

    levels = {moved.node_key.node: (moved.capability, moved.level) for moved in found}
    assert levels == {level.value: (WORK, level.value) for level in Priority}


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


PLACE = NodeKey("w", "one")
HEARTBEAT_SECONDS = 45


class HeartbeatWalk(Walked):
    """One that takes in what a ledger does, and has its clock."""

    clock: Ledger
    followed: int = 0
    """How many of the ledger's effects are taken in."""

    def now_ms(self) -> int:
        return self.clock.now_ms

    def follow(self) -> None:
        """Takes in what the ledger has done since."""
        for effects in self.clock.seen[self.followed :]:
            for moved in effects.transitions:
                self.in_flight.follow(moved, now())
        self.followed = len(self.clock.seen)


@asynccontextmanager
async def working(*, taken_over: bool = False, **settings: str) -> AsyncIterator[tuple[Ledger, HeartbeatWalk]]:
    """The one node is begun by an agent, and looked after."""
    server = MemoryServer()
    async with SimulatedDatabase() as database, MemoryBroker(server, name="dispatcher") as broker:
        ledger = await Ledger.open(database)
        walked = HeartbeatWalk(server, broker)
        walked.clock = ledger
        walked.open(Pings(broker, name="pings"))
        await ledger.start_one(**settings)
        await ledger.batch(Began(Started("w", "one", 1, 1, AGENT, 1, ledger.now_ms)))
        if taken_over:
            walked.in_flight.agree((await learn(database, 0)).active.in_flight, now())
        else:
            walked.follow()
        yield ledger, walked


@pytest.mark.parametrize("taken_over", [False, True], ids=["seen", "taken over"])
@in_virtual_time
async def test_node_whose_agent_is_silent_for_longer_is_given_to_another(taken_over: bool) -> None:
    async with working(taken_over=taken_over, heartbeat="45s") as (ledger, walked):
        await walked.walk(20)
        walked.in_flight.hear(PLACE, 1, now())
        await walked.walk(HEARTBEAT_SECONDS)
        heard = list(walked.lost)
        await walked.walk(ORPHAN_CHECK_SECONDS)
        await ledger.batch(*walked.lost)

        assert (heard, walked.lost) == ([], [Lost(PLACE, 1, AGENT, HEARTBEAT)])
        row = await ledger.node("one")
        assert (row.state, row.attempt, row.fence) == (TaskState.PUBLISHED, 2, 2)


@in_virtual_time
async def test_one_lost_word_is_no_silence_by_the_shortest_heartbeat() -> None:
    async with working(heartbeat=f"{LEAST_HEARTBEAT_MS}ms") as (_, walked):
        await walked.walk(2 * BEAT_SECONDS)
        await asyncio.sleep(PROGRESS_PAUSE_SECONDS)
        await walked.detector.look()

        assert walked.lost == []


@in_virtual_time
async def test_claim_of_the_agent_that_has_it_is_a_word_of_it() -> None:
    async with working(heartbeat="45s") as (ledger, walked):
        await walked.walk(HEARTBEAT_SECONDS)
        claim = await ledger.batch(Claimed(PLACE, 1, AGENT))
        walked.follow()

        await walked.walk(HEARTBEAT_SECONDS)

        assert (claim, walked.lost) == ((Claim(Verdict.RUN, 1, 1),), [])


@pytest.mark.parametrize(
    ("settings", "age_ms"), [({"heartbeat": "5m"}, EARLY_ACK_MS + 1), ({}, 0)], ids=["long, with its own", "short"]
)
@in_virtual_time
async def test_the_heartbeat_of_long_tasks_is_for_them_alone(settings: dict[str, Any], age_ms: int) -> None:
    async with working(**settings) as (ledger, walked):
        ledger.now_ms += age_ms
        await walked.walk(2 * SILENT_SECONDS)

        assert walked.lost == []


GONE = AgentId("worker-1")
KEY = NodeKey("w", "n")


def one(
    *, begun: bool, acked: bool = False, doubted: bool = False, heartbeat_ms: int | None = None, agent: str = GONE
) -> InFlight:
    """A flight under the number 7, heard of at 0."""
    made, state = InFlight(Capacity(lambda: 0.0)), TaskState.WORKING if begun else TaskState.PUBLISHED
    published_ms = NOW_MS - EARLY_ACK_MS - acked
    row = NodeRecord(state, publication=7, fence=1, agent=agent if begun else "", published_ms=published_ms)
    row.heartbeat_ms = heartbeat_ms
    made.follow(Transition(KEY, state, "work.do", "p1", row), 0.0)
    made.doubt(7 if doubted else 6)
    return made


SILENCES = {
    "not begun": (one(begun=False), 60.0, Fate.SOUGHT),
    "not begun, published long ago": (one(begun=False, acked=True), 60.0, Fate.SOUGHT),
    "not begun, with a heartbeat": (one(begun=False, heartbeat_ms=20_000), 60.0, Fate.SOUGHT),
    "not begun, doubted": (one(begun=False, doubted=True), 2.9, Fate.LOST),
    "begun": (one(begun=True), 60.0, Fate.SOUGHT),
    "long": (one(begun=True, acked=True), 60.0, Fate.LOST),
    "begun, doubted": (one(begun=True, doubted=True), 60.0, Fate.LOST),
    "with a heartbeat": (one(begun=True, heartbeat_ms=20_000), 20.0, Fate.LOST),
    "long, with a heartbeat": (one(begun=True, acked=True, heartbeat_ms=90_000), 90.0, Fate.LOST),
}


@pytest.mark.parametrize(("flights", "until", "then"), SILENCES.values(), ids=SILENCES)
def test_silence_is_judged_by_what_it_is_a_silence_of(flights: InFlight, until: float, then: Fate) -> None:
    ((_, flight),) = flights

    assert flights.fate(flight, until, NOW_MS) is Fate.HELD
    assert flights.fate(flight, until + 0.2, NOW_MS) is flights.fate(flight, until + 100, NOW_MS) is then
    assert [lost.publication for lost in flights.lost(until + 0.2, NOW_MS)] == ([7] if then is Fate.LOST else [])


@pytest.mark.parametrize(
    ("flights", "lost"),
    [
        (one(begun=True), True),
        (one(begun=True, acked=True), True),
        (one(begun=False), False),
        (one(begun=True, acked=True, agent="worker-2"), False),
    ],
    ids=["short", "long", "not begun", "another's"],
)
def test_what_an_agent_had_that_is_gone_is_lost_and_nothing_else(flights: InFlight, lost: bool) -> None:
    assert (GONE in flights.agents) == lost
    assert flights.lost_with(GONE, 0.0) == [Lost(KEY, 7, GONE)] * lost


def test_task_takes_room_of_the_capability_that_has_it_until_its_shard_is_closed() -> None:
    capacity = Capacity(lambda: 0.0)
    flights = InFlight(capacity)
    rooms = []
    for capability in ("work.do", "work.other"):
        flights.follow(published(capability), 0.0)
        rooms.append((capacity.under_way("work.do"), capacity.under_way("work.other")))
    flights.close()

    assert rooms == [(1, 0), (0, 1)]
    assert (capacity.under_way("work.other"), len(flights)) == (0, 0)


def published(capability: str) -> Transition:
    return Transition(KEY, TaskState.PUBLISHED, capability, "p1", NodeRecord(TaskState.PUBLISHED, publication=7))


class Heard:
    """The part of a shard worker and of a delivery that a sign of life touches."""

    def __init__(self, *progress: Progress) -> None:
        self.message = progress_message(list(progress))
        self.signs: list[Progress] = []
        self.acked = False

    def hear(self, progress: Progress) -> None:
        self.signs.append(progress)

    def ack(self) -> None:
        self.acked = True


@pytest.fixture
def in_flight() -> InFlight:
    """One node that works with fence 2, heard at 1."""
    made = InFlight(Capacity(lambda: 0.0))
    row = NodeRecord(TaskState.WORKING, fence=2, publication=7, agent=AgentId("a"), published_ms=500)
    made.follow(Transition(KEY, TaskState.WORKING, "code.review", "p1", row), 1.0)
    return made


def heard(in_flight: InFlight) -> float:
    ((_, flight),) = in_flight
    return flight.heard


def test_progress_is_heard_and_acked() -> None:
    progress = Progress("w", "n", 2, 0.5, "half", 2_000)
    heard = Heard(progress, progress)

    ResultsConsumer(heard).take(heard)  # type: ignore[arg-type]

    assert heard.signs == [progress, progress]
    assert heard.acked


@pytest.mark.parametrize(
    ("node_key", "fence", "at"),
    [(KEY, 2, 9.0), (KEY, 1, 1.0), (NodeKey("w", "other"), 2, 1.0)],
    ids=["own", "older execution", "nobody"],
)
def test_the_present_execution_keeps_its_node_up(in_flight: InFlight, node_key: NodeKey, fence: int, at: float) -> None:
    in_flight.hear(node_key, fence, 9.0)

    assert heard(in_flight) == at


def test_whose_start_was_not_told_is_alive_and_has_not_started() -> None:
    in_flight = InFlight(Capacity(lambda: 0.0))
    row = NodeRecord(TaskState.PUBLISHED, fence=2, publication=7, published_ms=500)
    in_flight.follow(Transition(KEY, TaskState.PUBLISHED, "code.review", "p1", row), 1.0)

    in_flight.hear(KEY, 2, 9.0)

    assert heard(in_flight) == 9.0
    assert in_flight.started == {}
