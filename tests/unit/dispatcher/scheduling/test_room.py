"""Room: no way brings more of a capability under way than its window holds, and none keeps another out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from coditect import Agent, Workflow
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.client import Client
from coditect.errors import InputError, Retryable
from coditect.model.capability import Priority
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher import capacity, program
from dispatcher.capacity import LEAST, Capacity
from dispatcher.ledger.commands import Asked, Command, Fill, Proposed, Show
from dispatcher.ledger.effects import NodeKey
from dispatcher.ports import ClaimPaths, Ports
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.shards.completions import Settle
from dispatcher.shards.ownership import ShardOwnership
from dispatcher.store.errors import TransactionTimedOut
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.transaction import Reads
from dispatcher.taskgraph.bridge import Bridge
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import JobState, Proposal, RequestKind, ToolRequest
from tests.contract.graph.scene import counted
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import Ledger
from tests.unit.dispatcher.lone_worker import start_of

BY_RQ = ClaimPaths(on_record=False, from_rq=True, from_index=False)
BY_INDEX = ClaimPaths(on_record=False, from_rq=False, from_index=True)
CAPABILITIES = ("slow", "quick")


class Gauge(Capacity):
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
async def hall(ways: ClaimPaths, shards: int) -> AsyncIterator[Hall]:
    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    graph = MemoryTaskGraph()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        client = await enter(Client(await enter(MemoryBroker(server, name="client")), registry, clock=clock))
        own = await enter(MemoryBroker(server, name="dispatcher"))
        for capability in CAPABILITIES:
            await own.declare(base_topology() + capability_queues(capability))
        gauge = Gauge(asyncio.get_running_loop().time)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(program, "Capacity", lambda _: gauge)
            patched.setattr(capacity, "RECENT_SECONDS", 0.0)
            database = await enter(MemoryDatabase())
            options = DispatcherOptions(shards=shards, ways=ways)
            plane = running_dispatcher(
                broker=own,
                registry=registry,
                clock=clock,
                database=database,
                graph=graph if ways.from_rq else None,
                options=options,
            )
            await enter(plane)

            async def begin_work(capability: str) -> None:
                agent = Agent(f"{capability}-agent", slots=LEAST // 4)

                @agent.capability(capability)
                async def work(task: Any) -> Any:
                    return task

                broker = await enter(MemoryBroker(server, name=agent.name))
                settings, drain = Settings(drain_seconds=0), asyncio.Event()
                await enter(
                    running_agent(agent, broker=broker, registry=registry, settings=settings, clock=clock, drain=drain)
                )

            yield Hall(client, graph, gauge, shards, begin_work)


def fan(capability: str, width: int, *levels: Priority) -> Workflow:
    flow = Workflow("fan")
    for level in levels:
        for number in range(width):
            flow.task(capability, number, name=f"{level.value}n{number}", priority=level)
    return flow


async def test_rq_brings_no_more_than_the_window_holds_and_the_urgent_first() -> None:
    async with hall(BY_RQ, shards=1) as scene:
        run = await scene.client.start(fan("slow", 100, *reversed(Priority)))

        async def full() -> bool:
            return (await scene.states(Priority.P0))[JobState.STARTED] == LEAST

        await eventually(full)
        assert await scene.states(Priority.P0) == {JobState.STARTED: LEAST, JobState.QUEUED: 100 - LEAST}
        assert await scene.states(Priority.P2) == {JobState.QUEUED: 100}
        await scene.begin_work("slow")

        assert await run.wait(timeout="15s") is WorkflowState.COMPLETED
        assert scene.gauge.highest == {"slow": LEAST}


async def test_full_capability_at_the_head_of_rq_s_queues_keeps_no_other_out() -> None:
    async with hall(BY_RQ, shards=2) as scene:
        for _ in range(3):
            await scene.client.start(fan("slow", 150, Priority.P0, Priority.P1))
        await eventually(lambda: scene.gauge.under_way("slow") == LEAST)
        await scene.begin_work("quick")

        runs = [await scene.client.start(fan("quick", 100, Priority.P1)) for _ in range(2)]

        assert [await run.wait(timeout="15s") for run in runs] == [WorkflowState.COMPLETED] * 2
        assert scene.gauge.highest["slow"] == scene.gauge.under_way("slow") == LEAST
        assert scene.gauge.highest["quick"] <= LEAST


async def test_shards_share_the_room_when_the_ready_index_is_claimed_from() -> None:
    async with hall(BY_INDEX, shards=4) as scene:
        runs = [await scene.client.start(fan("slow", 50, Priority.P1)) for _ in range(8)]
        await eventually(lambda: scene.gauge.under_way("slow") == LEAST)
        await scene.begin_work("slow")

        assert [await run.wait(timeout="15s") for run in runs] == [WorkflowState.COMPLETED] * 8
        assert scene.gauge.highest == {"slow": LEAST}


async def test_what_rq_proposes_is_claimed_where_there_is_room_and_else_stays_ready(ledger: Ledger) -> None:
    ledger.room = {"work": 0}
    await ledger.start(fan("work", 1, Priority.P1).definition())
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
    flow = Workflow("two")
    flow.task("work", name="behind", after=[flow.task("work", name="first")])
    await ledger.start(flow.definition())
    behind = NodeKey("w", "behind")

    answers = await ledger.batch(Proposed((behind,), "work"))

    assert answers == (0,)
    assert [(one.node_key, one.state) for one in ledger.seen[-1].snapshots] == [(behind, TaskState.BLOCKED)]
    assert [one.node_key.node for one in ledger.published] == ["first"]
    assert await ledger.states() == {"first": TaskState.PUBLISHED, "behind": TaskState.BLOCKED}


async def test_ready_index_is_claimed_from_no_further_than_there_is_room(ledger: Ledger) -> None:
    ledger.room = {"work": 0}
    await ledger.start(fan("work", 3, Priority.P1).definition())

    some = await ledger.batch(Fill("work", 2))
    ledger.room = {"work": -5}  # the window has become smaller since room was kept
    none = await ledger.batch(Fill("work", 2))
    ledger.room = {"work": 0}
    rest = await ledger.batch(Fill("work", 2))

    assert (some, none, rest) == ((True,), (True,), (False,))
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
    workers.put_down[0][1].done(1)

    assert workers.commands == [
        Proposed((NodeKey("w", "a"), NodeKey("w", "b")), "slow"),
        Proposed((NodeKey("w", "c"),)),
    ]
    assert kept == (0, 0)
    assert room.room_for("slow") == 2


@pytest.mark.parametrize("how", ["undone", "refused"])
async def test_room_is_free_again_when_what_rq_brought_is_not_claimed(how: str) -> None:
    workers = Workers()
    made, room = scheduler(workers)

    await made.proposed([Proposal("w", node, "slow") for node in "ab"])
    ((_, settle),) = workers.put_down
    settle.undone() if how == "undone" else settle.done(InputError("no"))

    assert room.room_for("slow") == 2


async def test_many_that_rq_brought_are_several_commands() -> None:
    workers = Workers()
    made, _ = scheduler(workers, least=100)

    await made.proposed([Proposal("w", f"n{number}", "slow") for number in range(100)])

    assert [len(cast(Proposed, command).node_keys) for command in workers.commands] == [64, 36]


async def test_what_rq_brought_for_a_shard_that_is_gone_keeps_no_room() -> None:
    made, room = scheduler(Workers(here=False))

    await made.proposed([Proposal("w", "a", "slow")])

    assert room.room_for("slow") == 2


@pytest.mark.parametrize(
    ("answer", "told"), [({"again": ["a"]}, True), (InputError("no"), True), (Retryable("not yet"), False)]
)
async def test_request_in_rq_stands_until_it_was_answered_for_good(answer: object, told: bool) -> None:
    workers = Workers()
    made, _ = scheduler(workers)

    await made.requested([ToolRequest("w", "a", RequestKind.REQUEUE)])
    ((asked, settle),) = workers.put_down
    settle.done(answer)

    assert isinstance(asked, Asked)
    assert [type(command) for command in workers.commands[1:]] == [Proposed] * told


class Silent(MemoryDatabase):
    """Does not answer so many reads."""

    silent = 0

    async def read(self, body: Callable[[Reads], Any]) -> Any:
        if self.silent:
            self.silent -= 1
            raise TransactionTimedOut("The fault that was asked for")
        return await super().read(body)


async def test_shard_that_rq_lost_is_shown_when_the_store_answers_again() -> None:
    graph, workers = MemoryTaskGraph(), Workers()
    async with Silent() as database:
        ledger = await Ledger.open(database)
        await ledger.start(fan("work", 1, Priority.P1).definition())
        made = Scheduler(cast(Ports, OnlyDatabase(database)), cast(ShardOwnership, workers), graph)
        database.silent = 2
        async with Supervisor() as supervisor:
            Bridge(graph, Forgetful(made), look_seconds=0.01).open(supervisor)

            async def known() -> bool:
                return set(await graph.known([0])) == {0}

            await eventually(known)

    assert workers.commands == [Show("w")]


@dataclass
class OnlyDatabase:
    """The part of the ports that touches the store."""

    database: MemoryDatabase
    ways: ClaimPaths = field(default_factory=ClaimPaths)


class Forgetful:
    """One shard, as the bridge sees it, without room for anything."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.forgotten, self.proposed, self.requested = scheduler.forgotten, scheduler.proposed, scheduler.requested

    def shards(self) -> list[int]:
        return [0]

    def room(self) -> dict[str, int]:
        return {}
