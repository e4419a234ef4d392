"""What a shard sends: while it is built anew, straight to a free agent, and of its status from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import pytest

import dispatcher.shards.worker as worker_module
from chaos.simulated_store import SimulatedDatabase
from coditect import Agent, Context, Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Broker
from coditect.broker.topology import agent_queues, base_topology, capability_queues
from coditect.errors import CoditectError
from coditect.messaging.control_plane import asking
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Status
from coditect.model.task import Task
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.control import Verb
from coditect.wire.tasks import read_task
from coditect.workflow.definition import Definition, Node
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import Continue
from dispatcher.ledger.effects import Effects, NodeKey, Publication, Transition
from dispatcher.ledger.rows import NodeRecord, RunRecord, WorkflowRecord
from dispatcher.ledger.workflows import republish
from dispatcher.shards import status_cache as status_cache_module
from dispatcher.shards.batch import Batch, BatchResult
from dispatcher.shards.completions import pass_on
from dispatcher.shards.in_flight import InFlight
from dispatcher.shards.publishing import Confirms, ShardPublisher, send_cancel
from dispatcher.shards.status_cache import StatusCache
from dispatcher.store.errors import StoreUnavailable
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed
from tests.unit.dispatcher.lone_worker import CAPABILITY, LoneWorker
from tests.unit.dispatcher.planes import Plane


class Slow:
    """Takes publications, and confirms when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.recalled: list[str] = []
        self.confirm = asyncio.Event()

    async def publish(self, message: Any, **_: Any) -> None:
        self.begun.append(message.message_id)
        try:
            await self.confirm.wait()
        except asyncio.CancelledError:
            self.recalled.append(message.message_id)
            raise


class Scene:
    """Sendings to a slow broker."""

    def __init__(self) -> None:
        self.broker = Slow()
        self.sent: list[int] = []
        self.publisher = ShardPublisher(
            cast(Broker, self.broker), lambda publication, _: self.sent.append(publication.number)
        )

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.publisher.send(Publication(NodeKey("w", f"n{number}"), number, task(number)))

    async def begun(self, *numbers: int) -> None:
        await eventually(lambda: self.broker.begun == [str(number) for number in numbers])


def task(number: int) -> Task:
    return Task("work", Priority.P1, b"{}", id=TaskId(str(number)), correlation_id=TaskId(str(number)))


async def test_same_occasion_again_drops_nothing_of_what_the_first_one_publishes() -> None:
    scene = Scene()
    scene.publisher.hold(recall=False)
    scene.publisher.go_on(10)
    scene.send(11, 12)
    await scene.begun(11, 12)

    scene.publisher.hold(recall=False)
    scene.send(13)
    scene.publisher.go_on(10)

    await scene.begun(11, 12, 13)
    scene.broker.confirm.set()
    await eventually(lambda: sorted(scene.sent) == [11, 12, 13])
    assert scene.broker.recalled == []


@pytest.mark.parametrize("recall", [False, True])
async def test_what_was_published_before_is_dropped_and_what_comes_after_is_sent(recall: bool) -> None:
    scene = Scene()
    scene.send(1, 2)
    await scene.begun(1, 2)
    scene.publisher.hold(recall=recall)
    if recall:  # nothing goes to a broker for which it was not meant
        await eventually(lambda: scene.broker.recalled == ["1", "2"])
    scene.send(3, 4)
    scene.publisher.go_on(3)
    await scene.begun(1, 2, 4)
    scene.broker.confirm.set()
    await eventually(lambda: scene.sent == [4])

    assert scene.broker.recalled == ["1", "2"]


async def test_older_occasion_told_late_changes_nothing() -> None:
    scene = Scene()
    scene.publisher.hold(recall=False)
    scene.publisher.go_on(10)
    scene.publisher.go_on(5)

    scene.send(7)

    await scene.publisher.settled(0.0)
    assert scene.broker.begun == []


async def test_rebuild_that_is_asked_for_twice_publishes_once_what_the_first_one_began(lone: LoneWorker) -> None:
    await lone.start()
    await eventually(lambda: lone.published() == 1)
    lone.server.stop()
    noted = asyncio.get_running_loop().create_future()
    lone.worker.rebuild("marker", "a person", partial(pass_on, noted))
    last = await noted
    await eventually(lambda: lone.flight.publication > last)

    again = asyncio.get_running_loop().create_future()
    lone.worker.rebuild("marker", "a person", partial(pass_on, again))
    assert await again == last
    lone.server.start()

    await eventually(lambda: lone.published() == 2)
    assert lone.flight.publication == last + 1
    assert lone.capacity.under_way(CAPABILITY) == 1


async def test_shard_publishes_again_after_a_refused_rebuild(lone: LoneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise ValueError("The fault that was asked for")

    noted = asyncio.get_running_loop().create_future()
    with monkeypatch.context() as patched:
        patched.setattr(republish, "begin", refuse)
        lone.worker.rebuild("marker", "a person", partial(pass_on, noted))
        with pytest.raises(CoditectError, match="failed on this"):
            await noted

    await lone.start()

    await eventually(lambda: lone.published() == 1)


class Sent:
    """Publications of nodes that are under way, and their confirms."""

    def __init__(self) -> None:
        self.in_flight = InFlight(Capacity(lambda: 0.0))
        self.overdue = asyncio.Event()
        self.confirms = Confirms(self.in_flight, self.overdue.set)

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.move(number, TaskState.PUBLISHED)
            self.confirms.add([Publication(NodeKey("w", f"n{number}"), number, task(number))])

    def move(self, number: int, state: TaskState, agent: str = "") -> None:
        row = NodeRecord(state, publication=number, agent=agent)
        self.in_flight.follow(Transition(NodeKey("w", f"n{number}"), state, "work", "p1", row), 0.0)


async def test_number_is_confirmed_when_all_below_it_are_or_need_it_no_more() -> None:
    sent = Sent()
    sent.send(1, 2, 3, 4)

    sent.confirms.note(2)
    assert sent.confirms.unrecorded == 0
    sent.confirms.note(1)
    assert sent.confirms.unrecorded == 2
    sent.move(3, TaskState.COMPLETED)
    assert sent.confirms.unrecorded == 3
    sent.confirms.record(3)
    assert sent.confirms.unrecorded == 0
    sent.move(4, TaskState.WORKING, agent="worker-1")
    assert sent.confirms.unrecorded == 4, "its agent has it, whatever became of the confirm"


async def test_confirms_are_overdue_only_without_a_batch_for_a_while() -> None:
    sent = Sent()
    sent.send(1, 2)
    sent.confirms.note(1)
    sent.confirms.wait(0.01)
    assert sent.confirms.take() == 1
    assert sent.confirms._timer is None, "a batch has taken it along"
    assert not sent.overdue.is_set()
    sent.confirms.wait(0.01)
    await asyncio.wait_for(sent.overdue.wait(), 5)
    assert (sent.confirms.are_overdue, sent.confirms.take(), sent.confirms.are_overdue) == (True, 1, False)

    sent.confirms.close()
    sent.confirms.note(2)
    sent.confirms.wait(3_600)
    assert (sent.confirms._timer, sent.confirms.take()) == (None, 0), "nothing is recorded after its end"


async def test_confirm_amid_a_commit_causes_none_of_its_own(lone: LoneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[Batch] = []
    monkeypatch.setattr(worker_module, "OUTBOX_IDLE_SECONDS", 3_600.0)
    lone.server.block()
    await lone.start()
    run = lone.database.run

    async def confirmed_meanwhile(body: partial[BatchResult]) -> BatchResult:
        if not committed:
            lone.server.unblock()
            await eventually(lambda: lone.worker._confirms.unrecorded)
        committed.append(body.keywords["batch"])
        return await run(body)

    with monkeypatch.context() as patched:
        patched.setattr(lone.database, "run", confirmed_meanwhile)
        for _ in range(2):
            await lone.worker.ask(Continue())

    assert [len(one.commands) for one in committed] == [1, 1], "none for the confirm alone"
    assert [one.confirmed for one in committed] == [0, 1]


async def test_confirms_of_a_failed_commit_are_recorded_with_the_next(
    lone: LoneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "OUTBOX_IDLE_SECONDS", 3_600.0)
    await lone.start()
    await eventually(lambda: lone.worker._confirms.unrecorded)
    run, refused = lone.database.run, list[Any]()

    async def refuse_once(body: Any) -> Any:
        if not refused:
            refused.append(body)
            raise StoreUnavailable("The fault that was asked for")
        return await run(body)

    with monkeypatch.context() as patched:
        patched.setattr(lone.database, "run", refuse_once)
        await lone.say(Continue())
        await lone.say(Continue())

    assert len(refused) == 1
    assert await lone.is_recorded(), "the next owner would publish the task again"


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


@pytest.mark.parametrize(
    ("follow_on", "free", "agent"),
    [(True, True, AGENT), (True, False, ""), (False, True, "")],
    ids=["free", "not free", "in a cluster"],
)
async def test_next_node_goes_to_the_agent_that_is_free(follow_on: bool, free: bool, agent: str) -> None:
    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database, follow_on=follow_on)
        await ledger.start(flow(WORK, WORK))

        assert await ended(ledger, free=free) == [agent]


async def test_next_node_of_another_capability_goes_to_anybody(ledger: Ledger) -> None:
    await ledger.start(flow(WORK, "other", WORK))

    assert await ended(ledger) == [""]
    assert await ended(ledger, free=False) == [""], "nobody is free for it by what ended before"


async def test_one_of_several_that_follow_goes_to_it(ledger: Ledger) -> None:
    wide = Workflow("wide")
    top = wide.task(WORK, 0, name="top")
    for number in range(3):
        wide.task(WORK, number, name=f"n{number}", after=[top])
    await ledger.start(wide)

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


async def test_cancel_that_reaches_no_agent_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with MemoryBroker(MemoryServer(), name="dispatcher") as broker:  # which has none of the exchanges
        with caplog.at_level("INFO", "dispatcher.shards.publishing"):
            await send_cancel(broker, NodeKey("w", "n"), 7)

    (said,) = caplog.records
    assert (said.message, vars(said)["task_id"]) == ("A cancel reached no agent", "w:n")


def test_start_from_an_agents_own_queue_says_nothing_of_the_capabilitys() -> None:
    in_flight = InFlight(Capacity(lambda: 0.0))
    node_key = NodeKey("w", "n")

    def move(state: TaskState, publication: int) -> None:
        row = NodeRecord(state, publication=publication, fence=1, agent=AGENT if state is TaskState.WORKING else "")
        in_flight.follow(Transition(node_key, state, WORK, "p1", row), 0.0)

    move(TaskState.PUBLISHED, 7)
    in_flight.note_own_queue(node_key)
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


HEAD = WorkflowRecord(0, "release", "", "", 1, 1_000)


def test_what_was_asked_for_is_known_as_it_was_committed_last_until_its_end() -> None:
    status_cache = StatusCache()
    first, last = RunRecord(WorkflowState.RUNNING, open=2), RunRecord(WorkflowState.RUNNING, open=1)
    status_cache.note(Effects(runs=[("w", first)]))
    status_cache.follow("w", HEAD)
    assert status_cache.get("w") is None, "nobody had asked for it"
    status_cache.note(Effects(runs=[("w", first), ("other", first)]))
    status_cache.note(Effects(runs=[("w", last)]))
    assert status_cache.get("w") == (HEAD, last)
    assert status_cache.get("other") is None
    status_cache.note(Effects(runs=[("w", RunRecord(WorkflowState.COMPLETED))]))
    assert status_cache.get("w") is None, "the end is read from the ledger"


def test_too_many_are_forgotten_and_read_again() -> None:
    status_cache = StatusCache(max_states=2)
    for workflow in ("a", "b", "c"):
        status_cache.follow(workflow, HEAD)
    run = RunRecord(WorkflowState.RUNNING)

    status_cache.note(Effects(runs=[("a", run), ("b", run), ("c", run)]))

    assert [status_cache.get(workflow) is None for workflow in ("a", "b", "c")] == [True, True, False]


async def test_waits_are_over_at_their_ends_and_when_only_the_ledger_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_cache_module, "MAX_WAITS", 4)
    cache = StatusCache()
    ended = Transition(NodeKey("w", "a"), TaskState.COMPLETED, "work", "p1", None)
    begun = replace(ended, node_key=NodeKey("w", "b"), state=TaskState.WORKING)
    with ExitStack() as waits:
        node_keys = [NodeKey("w", node) for node in ("", "a", "b", "b")]
        of_run, of_a, of_b, again = [waits.enter_context(cache.waiting(node_key)) for node_key in node_keys]
        with cache.waiting(NodeKey("other", "")) as too_many:
            assert too_many.done()
        cache.note(Effects(runs=[("w", RunRecord(WorkflowState.RUNNING, open=1))], transitions=[ended, begun]))
        assert [turn.done() for turn in (of_run, of_a, of_b, again)] == [False, True, False, False]
        cache.note(Effects(runs=[("w", RunRecord(WorkflowState.COMPLETED))]))
        assert [turn.done() for turn in (of_run, of_b)] == [True, False]
        cache.clear()
        assert of_b.done() and again.done()
    assert cache.held == 0


async def test_who_waits_for_an_end_asks_once(made: Plane) -> None:
    may_end = asyncio.Semaphore(0)
    worker = Agent("worker")

    @worker.capability("over.wait")
    async def work(number: int) -> int:
        await may_end.acquire()
        return number

    own = await made.broker("dispatcher")
    dispatcher = await made.dispatcher(own, shards=1)
    await made.agent(worker)
    client = await made.client()
    handle = await client.submit("over.wait", 1, durable=True)
    shard = dispatcher.ownership.workers[0]
    with patch.object(made.database, "ask", wraps=made.database.ask) as ledger:
        outcome = asyncio.ensure_future(handle.outcome(timeout="1h"))
        await eventually(lambda: shard.status_cache.held)
        may_end.release()
        found = await outcome
        assert not ledger.called, "memory knows that it runs, and the commit has the answer"
    again = await client.tasks.get(handle.task_id).outcome(timeout="1h")
    assert (found.status, found.body) == (Status.COMPLETED, b"1")
    assert found == again and found.agent_id is not None, "the ledger says the same"


async def test_who_asks_again_and_again_is_told_each_commit_without_the_ledger(made: Plane) -> None:
    may_end = asyncio.Semaphore(0)
    worker = Agent("worker")

    @worker.capability("over.view")
    async def work(number: int) -> None:
        await may_end.acquire()

    own = await made.broker("dispatcher")
    dispatcher = await made.dispatcher(own, shards=1)
    await made.agent(worker)
    control = await made.stack.enter_async_context(asking(own, made.clock, name="asks"))
    client = await made.client()
    flow = Workflow("steps")
    before: list[Node] = []
    for number in range(4):
        before = [flow.task("over.view", number, name=f"n{number}", after=before)]
    run = await client.start(flow)

    async def ended() -> int:
        return (await run.overview()).counts.get(TaskState.COMPLETED, 0)

    for done in range(4):
        await eventually(partial(_is, ended, done))
        assert (dispatcher.ownership.workers[0].status_cache.get(run.id) is not None) == (done > 0)
        with patch.object(made.database, "ask", wraps=made.database.ask) as ledger:
            told = await control.ask(Verb.RESULT, {"workflow": run.id})
            assert told == {"state": "running", "reason": "", "value": None, "failure": None}
            assert not done or not ledger.called
            first = await control.ask(Verb.RESULT, {"workflow": run.id, "node": "n0"})
            assert (first["state"] == "completed") == (done > 0)
            assert ledger.called
        may_end.release()
    assert await run.wait(timeout="10s") is WorkflowState.COMPLETED
    assert await ended() == 4
    assert dispatcher.ownership.workers[0].status_cache.get(run.id) is None


async def _is(ask: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await ask() == wanted
