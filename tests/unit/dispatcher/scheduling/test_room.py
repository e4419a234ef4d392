"""Room: nothing brings more under way than a window holds, and a capability without a queue is probed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.capacity import BacklogCapacity
from chaos.simulated_store import SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect import Agent, Workflow
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.client import Client
from coditect.errors import InputError, Retryable
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher import capacity
from dispatcher.capacity import LEAST, NO_QUEUE_PAUSES, Capacity
from dispatcher.ledger.commands import Asked, Command, Lost, NoQueue, Proposed, Show
from dispatcher.ledger.effects import NodeKey
from dispatcher.ports import Ports
from dispatcher.scheduling import scheduler as scheduler_module
from dispatcher.scheduling.scheduler import Bridge, Scheduler
from dispatcher.shards.completions import Settle, Undone
from dispatcher.shards.ownership import ShardOwnership
from dispatcher.taskgraph.port import JobState, Proposal, RequestKind, ToolRequest
from tests.contract.graph.scene import counted
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import Ledger, tasks
from tests.unit.dispatcher.lone_worker import start_of
from tests.unit.dispatcher.planes import dispatcher_of, plane
from tests.unit.dispatcher.shards.test_timer_service import Silent

CAPABILITIES = ("slow", "quick")


class Gauge(BacklogCapacity):
    """Remembers how much was under way at most."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.highest: Counter[str] = Counter()

    def begin(self, capability: str) -> None:
        super().begin(capability)
        self.highest[capability] = max(self.highest[capability], self.under_way(capability))


@dataclass
class Hall:
    """A dispatcher with RQ in memory; nobody works until the test says so."""

    client: Client
    graph: MemoryTaskGraph
    gauge: Gauge
    shards: int
    begin_work: Callable[[str], Any]

    async def states(self, level: Priority) -> Counter[JobState]:
        """What RQ counts at one level."""
        return await counted(self.graph, range(self.shards), levels=[level])


@asynccontextmanager
async def hall(*, by_rq: bool, shards: int) -> AsyncIterator[Hall]:
    """Nodes are claimed by RQ's proposals, or else from the ledger's index."""
    graph, gauge = MemoryTaskGraph(), Gauge(asyncio.get_running_loop().time)
    with pytest.MonkeyPatch.context() as patched:
        if by_rq:
            patched.setattr(Scheduler, "_fill", lambda scheduler, capability: None)
        patched.setattr(capacity, "RECENT_SECONDS", 0.0)
        async with plane() as made:
            client, own = await made.client(), await made.broker("dispatcher")
            for capability in CAPABILITIES:
                await own.declare(base_topology() + capability_queues(capability))
            await made.dispatcher(own, graph=graph if by_rq else None, shards=shards, capacity=gauge)

            async def begin_work(capability: str) -> None:
                agent = Agent(f"{capability}-agent", slots=LEAST // 4)

                @agent.capability(capability)
                async def work(task: Any) -> Any:
                    return task

                await made.agent(agent, drain_seconds=0)

            yield Hall(client, graph, gauge, shards, begin_work)


def fan(capability: str, width: int, *levels: Priority) -> Workflow:
    flow = Workflow("fan")
    for level in levels:
        for number in range(width):
            flow.task(capability, number, name=f"{level.value}n{number}", priority=level)
    return flow


async def test_rq_brings_no_more_than_the_window_holds_and_the_urgent_first() -> None:
    async with hall(by_rq=True, shards=1) as scene:
        run = await scene.client.start(fan("slow", 100, *reversed(Priority)))

        async def full() -> bool:
            return (await scene.states(Priority.P0))[JobState.STARTED] == LEAST

        await eventually(full)
        assert await scene.states(Priority.P0) == {JobState.STARTED: LEAST, JobState.QUEUED: 100 - LEAST}
        assert await scene.states(Priority.P2) == {JobState.QUEUED: 100}
        await scene.begin_work("slow")

        assert await run.wait(timeout="15s") is WorkflowState.COMPLETED
        assert scene.gauge.highest == {"slow": LEAST}


async def test_shards_share_the_room_when_the_ready_index_is_claimed_from() -> None:
    async with hall(by_rq=False, shards=4) as scene:
        runs = [await scene.client.start(fan("slow", 50, Priority.P1)) for _ in range(8)]
        await eventually(lambda: scene.gauge.under_way("slow") == LEAST)
        await scene.begin_work("slow")

        assert [await run.wait(timeout="15s") for run in runs] == [WorkflowState.COMPLETED] * 8
        assert scene.gauge.highest == {"slow": LEAST}


async def test_what_rq_proposes_is_claimed_where_there_is_room_and_else_stays_ready(ledger: Ledger) -> None:
    ledger.room = {"work": 0}
    await ledger.start(fan("work", 1, Priority.P1))
    node_key = NodeKey("w", "p1n0")

    refused = await ledger.batch(Proposed((node_key,)))
    shown = [(one.node_key, one.state) for one in ledger.seen[-1].snapshots]
    other = await ledger.batch(Proposed((node_key,), "another"))
    waiting = await ledger.states()
    claimed = await ledger.batch(Proposed((node_key, node_key), "work"))

    assert (refused, other, claimed) == ((0,), (0,), (1,))
    assert shown == [(node_key, TaskState.READY)]
    assert waiting == {"p1n0": TaskState.READY}
    assert len(ledger.published) == 1


async def test_what_rq_proposes_while_it_is_blocked_is_refused_and_shown_as_it_is(ledger: Ledger) -> None:
    await ledger.start(tasks(first="", behind="first"))
    behind = NodeKey("w", "behind")

    answers = await ledger.batch(Proposed((behind,), "work"))

    assert answers == (0,)
    assert [(one.node_key, one.state) for one in ledger.seen[-1].snapshots] == [(behind, TaskState.BLOCKED)]
    assert [one.node_key.node for one in ledger.published] == ["first"]
    assert await ledger.states() == {"first": TaskState.PUBLISHED, "behind": TaskState.BLOCKED}


async def test_backlog_is_claimed_from_no_further_than_there_is_room(ledger: Ledger) -> None:
    ledger.room = {"work": 0}
    await ledger.start(fan("work", 3, Priority.P1))

    some = await ledger.fill("work", 2)
    ledger.room = {"work": -5}  # the window has become smaller since room was kept
    none = await ledger.fill("work", 2)
    ledger.room = {"work": 0}
    rest = await ledger.fill("work", 2)

    assert (some, none, rest) == (0, 1, 0)
    assert [one.node_key.node for one in ledger.published] == ["p1n0", "p1n1", "p1n2"]


async def test_nothing_overtakes_what_began_to_wait_in_the_same_transaction(prompt_ledger: Ledger) -> None:
    prompt_ledger.room = {"work": 1}
    first, last = start_of("a", fan("work", 2, Priority.P1)), start_of("b", fan("work", 1, Priority.P1))
    begun, waits = NodeKey("a", "p1n0"), NodeKey("a", "p1n1")

    await prompt_ledger.batch(first, Proposed((begun,), "work"), last)
    at_once = [one.node_key for one in prompt_ledger.published]
    prompt_ledger.room = {"work": 0}
    await prompt_ledger.fill("work", 1)

    assert at_once == [begun]
    assert [one.node_key for one in prompt_ledger.published] == [begun, waits]


class Workers:
    """The part of a tenure that the bridge's proposals touch."""

    def __init__(self, *, here: bool = True) -> None:
        self.count = 1
        self.here = here
        self.put_down: list[tuple[Command, Settle]] = []

    def put(self, shard: int, command: Command, settle: Settle, *, size_bytes: int) -> bool:
        if self.here:
            self.put_down.append((command, settle))
        return self.here

    @property
    def commands(self) -> list[Command]:
        return [command for command, _ in self.put_down]


@dataclass
class OnlyCapacity:
    """The part of the ports that they touch."""

    capacity: Capacity


def scheduler(workers: Workers, *, least: int = 2) -> tuple[Scheduler, Capacity]:
    room = Capacity(lambda: 0.0, least=least)
    return Scheduler(cast(Ports, OnlyCapacity(room)), cast(ShardOwnership, workers), None), room


async def test_room_is_kept_for_what_rq_brought_until_it_is_settled() -> None:
    workers = Workers()
    made, room = scheduler(workers)

    await made.proposed([Proposal("w", node, "slow") for node in "abc"])
    kept = room.room_for("slow"), room.room()["slow"]
    workers.put_down[0][1](1)

    assert workers.commands == [
        Proposed((NodeKey("w", "a"), NodeKey("w", "b")), "slow"),
        Proposed((NodeKey("w", "c"),)),
    ]
    assert kept == (0, 0)
    assert room.room_for("slow") == 2


@pytest.mark.parametrize("how", ["undone", "refused", "gone"])
async def test_room_is_free_again_when_what_rq_brought_is_not_claimed(how: str) -> None:
    workers = Workers(here=how != "gone")
    made, room = scheduler(workers)
    await made.proposed([Proposal("w", node, "slow") for node in "ab"])
    for _, settle in workers.put_down:
        settle(Undone() if how == "undone" else InputError("no"))

    assert len(workers.put_down) == (how != "gone")
    assert room.room_for("slow") == 2


async def test_many_that_rq_brought_are_several_commands() -> None:
    workers = Workers()
    made, _ = scheduler(workers, least=100)

    await made.proposed([Proposal("w", f"n{number}", "slow") for number in range(100)])

    assert [len(cast(Proposed, command).node_keys) for command in workers.commands] == [64, 36]


@pytest.mark.parametrize(
    ("answer", "told"), [({"again": ["a"]}, True), (InputError("no"), True), (Retryable("not yet"), False)]
)
async def test_request_in_rq_stands_until_it_was_answered_for_good(answer: object, told: bool) -> None:
    workers = Workers()
    made, _ = scheduler(workers)

    await made.requested([ToolRequest("w", "a", RequestKind.REQUEUE)])
    ((asked, settle),) = workers.put_down
    settle(answer)

    assert isinstance(asked, Asked)
    assert [type(command) for command in workers.commands[1:]] == [Proposed] * told


async def test_shard_that_rq_lost_is_shown_when_the_store_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, workers = MemoryTaskGraph(), Workers()
    async with Silent() as database:
        ledger = await Ledger.open(database)
        await ledger.start(fan("work", 1, Priority.P1))
        made = Scheduler(cast(Ports, OnlyDatabase(database)), cast(ShardOwnership, workers), graph)
        database.silent = 2
        monkeypatch.setattr(scheduler_module, "RQ_CHECK_SECONDS", 0.01)
        async with Supervisor() as supervisor:
            Bridge(graph, cast(Scheduler, Forgetful(made))).open(supervisor)

            async def known() -> bool:
                return set(await graph.known([0])) == {0}

            await eventually(known)

    assert workers.commands == [Show("w")]


@dataclass
class OnlyDatabase:
    """The part of the ports that touches the store."""

    database: SimulatedDatabase


class Forgetful:
    """One shard, as the bridge sees it, without room for anything."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.forgotten, self.proposed, self.requested = scheduler.forgotten, scheduler.proposed, scheduler.requested

    def shards(self) -> list[int]:
        return [0]

    def room(self) -> dict[str, int]:
        return {}


NODES = 600
MOST_PROBES = 10
"""In two minutes: after 1, 2, 4, 8, 16 and then 30 s, for each shard that may claim in the same moment."""
ROUNDING = 1e-6
"""What a sum of seconds may lack of them."""


class Counting(MemoryBroker):
    """Counts the nodes that are published."""

    published = 0

    async def publish(self, message: Message, *, exchange: str, routing_key: str, **how: Any) -> None:
        self.published += exchange == routing.SUBMIT
        await super().publish(message, exchange=exchange, routing_key=routing_key, **how)


def gated(**nodes: str) -> Workflow:
    """Nodes with their capabilities, behind a gate."""
    flow = Workflow("gated")
    gate = flow.approval("now?", name="gate")
    for name, capability in nodes.items():
        flow.task(capability, name=name, after=[gate])
    return flow


async def lose(fleet: TestFleet, broker: MemoryBroker, worker: Agent, capability: str) -> None:
    """The only agent dies, its registration lapses, and its queue is deleted."""
    fleet.kill(worker.name)
    await fleet.advance(10)
    await broker.delete_queue(routing.task_queue(capability, Priority.P1))


async def test_capability_without_a_queue_is_probed_by_one_node_and_all_go_on_when_an_agent_comes() -> None:
    worker = Agent("worker", slots=8)
    worker.capability("late.work")(lambda _: None)
    async with (
        TestFleet([worker]) as fleet,
        SimulatedDatabase() as database,
        Counting(fleet.server, name="own") as broker,
    ):
        fleet.kill("dispatcher")
        async with dispatcher_of(fleet, broker, database, owner="own", graph=MemoryTaskGraph(), shards=1):
            run = await fleet.start(gated(**{f"n{number}": "late.work" for number in range(NODES)}))
            await lose(fleet, broker, worker, "late.work")
            await run.grant("gate", by="ada")
            await fleet.advance(120)
            tried = broker.published
            assert LEAST < tried <= LEAST + MOST_PROBES

            await fleet.add(worker)
            began = fleet.elapsed_seconds

            assert await run.wait(timeout="1m") is WorkflowState.COMPLETED
            assert fleet.elapsed_seconds - began < 10
            assert broker.published <= tried + NODES


async def test_other_capabilities_go_on_beside_one_without_a_queue() -> None:
    worker, other = Agent("worker", slots=8), Agent("other", slots=8)
    worker.capability("away")(lambda _: None)
    other.capability("here")(lambda _: None)
    async with TestFleet([worker, other]) as fleet, MemoryBroker(fleet.server, name="hand") as broker:
        here = {f"here{number}": "here" for number in range(100)}
        run = await fleet.start(gated(**here, **{f"away{number}": "away" for number in range(100)}))
        await lose(fleet, broker, worker, "away")
        await run.grant("gate", by="ada")
        await fleet.advance(5)

        done = {row.name async for row in run.nodes() if row.state.terminal}

    assert done == {"gate", *here}


@given(st.lists(st.floats(0.01, 5.0), min_size=20, max_size=200))
def test_probes_of_a_paused_capability_are_ever_further_apart(steps: list[float]) -> None:
    now, probes = 0.0, []
    capacity = Capacity(lambda: now)
    capacity.note_no_queue("work")
    for step in steps:
        now += step
        assert capacity.room().get("work", 0) == capacity.room_for("work") <= 1
        if capacity.room_for("work") > 0:
            probes.append(now)
            capacity.begin("work")
            capacity.end("work")
            capacity.note_no_queue("work")

    pauses = [after - before for before, after in pairwise(probes)]
    least = [min(2.0 ** (number + 1), NO_QUEUE_PAUSES.longest) - ROUNDING for number in range(len(pauses))]
    assert all(pause >= shortest for pause, shortest in zip(pauses, least, strict=True))


def test_paused_capability_is_open_again_when_a_queue_took_one_and_probed_when_an_agent_offers_it() -> None:
    now = 0.0
    capacity = Capacity(lambda: now)
    capacity.note_no_queue("work")
    assert capacity.room_for("work") == 0

    capacity.set_slots({"work": 4})
    assert capacity.room_for("work") == 1
    assert capacity.note_queue("work")

    assert capacity.room_for("work") == LEAST
    assert not capacity.note_queue("work")


async def test_late_return_of_an_older_publication_leaves_the_newer_one_alone(ledger: Ledger) -> None:
    older = await ledger.start_one()
    await ledger.batch(Lost(older.node_key, older.number))
    newer = ledger.published[-1]

    await ledger.batch(NoQueue(older.node_key, older.number))

    row = await ledger.node("one")
    assert (row.state, row.publication, row.reason) == (TaskState.PUBLISHED, newer.number, "")
    assert await ledger.unsent() == {newer.number: newer.node_key}
