"""The worker of one shard: batches that fail, and messages of several results."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from chaos.simulated_store import SimulatedDatabase
from coditect import Retry, Workflow
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import shard_queues
from coditect.errors import CoditectError, Retryable
from coditect.messaging.event_publisher import Events
from coditect.model.message import Message
from coditect.registry.port import ReferenceClock
from coditect.wire import routing
from coditect.wire.control import PROGRESS_TYPE, STARTED_TYPE
from coditect.wire.json import dumps
from coditect.wire.tasks import RESULT_TYPE
from coditect.wire.workflow_tasks import RESULTS_TYPE
from coditect.workflow.states import TaskState
from dispatcher.capacity import LEAST, Capacity
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Continue, Due, Fill, Finished, Proposed
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.keyspace import RUNS, STATUSES
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.attempts import UNRECORDABLE
from dispatcher.ledger.nodes.inputs import FAILURE, Inputs, inputs_of, value_of
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows import continuations
from dispatcher.ports import Ports
from dispatcher.shards import batch
from dispatcher.shards import continuations as shard_continuations
from dispatcher.shards.completions import Settle, Undone
from dispatcher.shards.continuations import log as continuations_log
from dispatcher.shards.results import ResultsConsumer
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.errors import StoreFailed, StoreUnavailable
from dispatcher.store.transaction import Transaction
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_ledger import completed, few_steps, wide
from tests.unit.dispatcher.lone_worker import CAPABILITY, ONLY, LoneWorker, open_worker, start_of

Value = TypeVar("Value")


class Strange(Continue):
    """A command that nobody has taught a batch to do."""


class Losing(SimulatedDatabase):
    """Takes so many transactions and refuses all behind them: the shard is another's."""

    batches = 1_000_000
    refusal: CoditectError = LostLease("The lease is another's")

    async def run(self, body: Callable[[Transaction], Value]) -> Value:
        self.batches -= 1
        if self.batches < 0:
            raise self.refusal
        return await super().run(body)


class Settled:
    """How each command was settled, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def of(self, name: str) -> Settle:
        def settle(answer: Any) -> None:
            refused = "refused" if isinstance(answer, CoditectError) else "done"
            self.told.append((name, "undone" if isinstance(answer, Undone) else refused))

        return settle


@asynccontextmanager
async def new_worker(lost: list[int]) -> AsyncIterator[tuple[ShardWorker, Losing]]:
    async with Losing() as database, Supervisor() as background:
        broker, clock = MemoryBroker(MemoryServer(), name="dispatcher"), SystemClock()
        await database.run(lambda tr: shards.fix_count(tr, 1))
        step = await database.run(lambda tr: shards.step(tr, "me", 1, count=1))
        events = Events(broker, clock, source="/dispatcher")
        ports = Ports(broker, database, events, ReferenceClock(clock), background, Capacity(lambda: 0.0))
        worker = ShardWorker(step.owned[0], ports, on_lost=lost.append, nudge=lambda: None)
        yield worker, database
        await worker.close()


async def test_command_that_cannot_be_done_is_refused_alone_and_the_others_are_done_in_order() -> None:
    settled, lost = Settled(), list[int]()
    async with new_worker(lost) as (worker, _):
        worker.put(Continue(), settled.of("first"))
        worker.put(Strange(), settled.of("strange"))
        worker.put(Continue(), settled.of("last"))

        await worker.open()
        await eventually(lambda: len(settled.told) == 3)

    assert settled.told == [("first", "done"), ("strange", "refused"), ("last", "done")]
    assert lost == []


async def test_commands_of_a_refused_batch_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = Settled()
    async with new_worker([]) as (worker, database):
        await worker.open()
        database.batches, database.refusal = 0, StoreUnavailable("The fault that was asked for")
        for name in ("first", "second", "third"):
            worker.put(Continue(), settled.of(name))
        await eventually(lambda: database.batches < 0)
        monkeypatch.setattr(Transaction, "is_aging", True)  # each does one command
        database.batches = 1_000_000
        await eventually(lambda: len(settled.told) == 3)
    assert [name for name, _ in settled.told] == ["first", "second", "third"]


class Slow(Continue):
    """A command that takes longer than a transaction may."""


@pytest.mark.once
@pytest.mark.parametrize(
    ("most_commands", "tries", "told"),
    [
        (100, 1_000_000, ["done", "refused", "done"]),
        (1, 1_000_000, ["done", "refused", "done"]),
        (100, batch.MOST_SLOW - 1, ["done", "done", "done"]),
        (1, 0, ["done", "done", "done"]),
    ],
    ids=["a slow one", "a slow one and a slow batch", "a machine that stood still", "a slow batch"],
)
async def test_command_that_always_takes_too_long_is_refused_alone_and_keeps_nobody_waiting(
    most_commands: int, tries: int, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, run, left = Settled(), batch.run_once, tries

    def slow(tr: Transaction, one: batch.Batch) -> batch.BatchResult:
        nonlocal left
        done = run(tr, replace(one, commands=[Continue() for _ in one.commands]))
        if any(isinstance(command, Slow) for command in one.commands):
            left -= 1
        if (left >= 0 and Slow() in one.commands) or len(one.commands) > most_commands:
            tr._until = 0.0  # the time that it may take is over
        return done

    monkeypatch.setattr(batch, "run_once", slow)
    async with new_worker([]) as (worker, _):
        for name, command in (("first", Continue()), ("slow", Slow()), ("last", Continue())):
            worker.put(command, settled.of(name))

        await worker.open()
        await eventually(lambda: len(settled.told) == 3)

    assert settled.told == [*zip(("first", "slow", "last"), told, strict=True)]


async def test_what_takes_too_long_is_set_aside(
    lone: LoneWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few_steps(monkeypatch, 1)

    def release(unit: UnitOfWork, node_key: NodeKey, after: str, most: int) -> int:
        if node_key.workflow == "slow":
            unit.tr._until = 0.0  # the time that it may take is over
        return advance.release(unit, node_key, after, most)

    monkeypatch.setattr(continuations, "_CONTINUED", {advance.RELEASE: release})
    flow = wide("abc")
    for workflow in ("slow", "swift"):
        await lone.say(start_of(workflow, flow))

    await eventually(lambda: lone.published() == 1 + 3)

    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "it is set aside" in record.message
    assert (vars(record)["workflow"], vars(record)["kind"]) == ("slow", advance.RELEASE)


@pytest.mark.once
@in_virtual_time
async def test_work_that_took_too_long_is_retried_after_a_pause() -> None:
    tried, pause_seconds = list[float](), 5.0

    def release(unit: UnitOfWork, node_key: NodeKey, after: str, most: int) -> int:
        tried.append(asyncio.get_running_loop().time())
        if len(tried) <= 3 * batch.MOST_SLOW:
            unit.tr._until = -1.0  # the time that it may take is over
        return advance.release(unit, node_key, after, most)

    with pytest.MonkeyPatch.context() as patched:
        few_steps(patched, 1)
        patched.setattr(shard_continuations, "OVERDUE_RETRY_SECONDS", pause_seconds)
        patched.setattr(continuations_log, "disabled", True)  # a fleet takes the error for a failure of the test
        patched.setattr(continuations, "_CONTINUED", {advance.RELEASE: release})
        flow = wide("ab")
        async with open_worker() as lone:
            await lone.say(start_of("w", flow))
            await eventually(lambda: lone.published() == 2, seconds=4 * pause_seconds)

    ends = [tried[number] for number in range(batch.MOST_SLOW - 1, len(tried), batch.MOST_SLOW)]
    begins = [tried[number] for number in range(batch.MOST_SLOW, len(tried), batch.MOST_SLOW)]
    assert len(tried) == 3 * batch.MOST_SLOW + 1
    assert [round(begin - end) for end, begin in zip(ends, begins, strict=True)] == [pause_seconds] * 3


async def test_workflows_run_while_others_are_evaluated(lone: LoneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Inputs:
        gate.wait(30)
        return inputs_of(*args, **kwargs)

    monkeypatch.setattr(shard_continuations, "inputs_of", slow)
    monkeypatch.setattr(advance, "MOST_STEPS_HERE", 1)
    flow = Workflow("slow")
    flow.task("work", name="slow", when="input == `null`")
    await lone.say(start_of("slow", flow))
    await lone.say(start_of("swift"))
    await eventually(lambda: lone.published() == 1)

    gate.set()

    await eventually(lambda: lone.published() == 2)


async def test_proposals_that_are_too_much_for_a_batch_are_claimed(
    lone: LoneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = wide("abc")
    lone.capacity.keep("work", LEAST)  # nothing is claimed at once
    await lone.say(start_of("w", flow))
    lone.capacity.free("work", LEAST)
    monkeypatch.setattr(UnitOfWork, "is_full", True)

    lone.worker.put(Proposed(tuple(NodeKey("w", name) for name in "abc")))

    await eventually(lambda: lone.published() == 3)


async def test_lease_that_is_lost_between_single_batches_is_counted_once_and_the_rest_goes_back() -> None:
    settled, lost = Settled(), list[int]()
    async with new_worker(lost) as (worker, database):
        worker.put(Strange(), settled.of("strange"))
        for name in ("second", "third", "fourth"):
            worker.put(Continue(), settled.of(name))

        await worker.open()
        database.batches = 2  # the one that they share, and that of the strange one
        await eventually(lambda: len(settled.told) == 4)

    assert settled.told == [("strange", "refused"), ("second", "undone"), ("third", "undone"), ("fourth", "undone")]
    assert lost == [worker.shard], "one commit was refused"


async def test_store_that_failed_for_good_closes_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    settled, lost = Settled(), list[int]()
    async with new_worker(lost) as (worker, database):
        await worker.open()
        database.batches, database.refusal = 0, StoreFailed("The disk is full")
        for name in ("first", "second"):
            worker.put(Continue(), settled.of(name))
        await eventually(lambda: len(settled.told) == 2)
        worker.put(Continue(), settled.of("third"))

    assert settled.told == [("first", "undone"), ("second", "undone"), ("third", "undone")]
    assert lost == [worker.shard]
    assert "A shard is another's by now" not in caplog.text


@pytest.mark.parametrize("attempts", [1, 3])
async def test_unrecordable_result_is_a_failed_attempt_and_in_the_end_a_dead_letter(
    lone: LoneWorker, attempts: int
) -> None:
    flow = Workflow("one")
    flow.task("work", name="only", retry=Retry(max_attempts=attempts, first="1ms", cap="1ms"))
    settled = Settled()
    await lone.start(flow)
    for attempt in range(1, attempts + 1):
        await eventually(lambda attempt=attempt: len(lone.worker.in_flight) and lone.flight.publication == attempt)  # type: ignore[misc]
        too_large = replace(completed(), body=b"1" * (LARGEST_BYTES + 1))
        lone.worker.put(Finished(ONLY, 0, attempt, too_large), settled.of(f"attempt {attempt}"))
        await eventually(lambda attempt=attempt: len(settled.told) == attempt)  # type: ignore[misc]
        (due,) = await lone.database.read(lambda tr: timers.due(tr, 0, 2**50)) or (None,)
        if due is not None:
            lone.worker.put(Due(due))

    row = await lone.database.read(lambda tr: tr.get(STATUSES.pack(ONLY)))
    told = await lone.database.read(lambda tr: value_of(tr, ONLY, FAILURE))

    assert row is not None
    assert (NodeRecord.unpack(row).state, NodeRecord.unpack(row).attempt) == (TaskState.DEAD, attempts)
    assert (told["reason"], told["type"]) == (UNRECORDABLE.reason, "ValueBeyondBound")
    assert settled.told == [(f"attempt {number}", "refused") for number in range(1, attempts + 1)]
    assert lone.refused("unrecorded") == attempts


async def test_a_request_that_waited_longer_than_its_sender_is_not_carried_out(lone: LoneWorker) -> None:
    now = asyncio.get_running_loop().time()
    with pytest.raises(Retryable):
        await lone.say(replace(start_of("late"), until=now - 1))
    timely = await lone.say(replace(start_of("timely"), until=now + 60))

    known = [await lone.database.read(lambda tr, w=w: tr.get(RUNS.pack((w,)))) for w in ("late", "timely")]  # type: ignore[misc]

    assert timely["state"] == "accepted"
    assert [row is not None for row in known] == [False, True]


QUEUE = routing.results_queue(0)
Row = list[object]


@pytest.fixture
async def loaded() -> AsyncIterator[LoneWorker]:
    """Two nodes, n0 and n1, are published; one that fails is not tried again while the test looks."""
    async with open_worker() as opened:
        flow = wide(2, CAPABILITY, retry=Retry(first="1h", cap="1h"))
        await opened.start(flow)
        await eventually(lambda: opened.published() == 2)
        await opened.ports.broker.declare(shard_queues(0))
        yield opened


def rows(lone: LoneWorker) -> list[Row]:
    """That both completed."""
    return [
        ["w", node_key.node, flight.fence, flight.publication, 1, node_key.task_id, 5, 6, CAPABILITY, False, 7]
        for node_key, flight in lone.worker.in_flight
    ]


async def brought(lone: LoneWorker, body: bytes, kind: str = RESULTS_TYPE) -> Delivery:
    broker = lone.ports.broker
    message = Message(body, type=kind, app_id="worker-1")
    await broker.publish(message, exchange=routing.RESULTS, routing_key="0")
    delivery = await broker.get(QUEUE)
    assert delivery is not None
    return delivery


async def left(lone: LoneWorker) -> tuple[int, int]:
    """How many messages nobody has settled for good, and how many are dead letters."""
    await lone.ports.broker.release()
    found = [lone.server.find(name) for name in (QUEUE, routing.UNROUTED_QUEUE)]
    results, dead = (0 if one is None else one.stats.messages for one in found)
    return results, dead


async def states(lone: LoneWorker) -> list[TaskState]:
    found = await lone.database.read(
        lambda tr: [tr.get(STATUSES.pack(("w", name))) for name in ("n0", "n1")]
    )  # fmt: skip
    return [NodeRecord.unpack(row).state for row in found if row is not None]


@pytest.mark.parametrize("late", [0, 1])
async def test_all_are_recorded_but_late_ones_and_the_message_is_done_with(loaded: LoneWorker, late: int) -> None:
    told = rows(loaded)
    told[1][2] = int(str(told[1][2])) + late
    ResultsConsumer(loaded.worker).take(await brought(loaded, b"[]"))
    ResultsConsumer(loaded.worker).take(await brought(loaded, dumps(told)))

    await eventually(lambda: len(list(loaded.worker.in_flight)) == late)
    assert await states(loaded) == [TaskState.COMPLETED, TaskState.PUBLISHED if late else TaskState.COMPLETED]
    assert loaded.refused("late") == late
    assert await left(loaded) == (0, 0)


@pytest.mark.parametrize("closed", ["before", "after"])
async def test_what_is_not_recorded_goes_back(loaded: LoneWorker, closed: str) -> None:
    delivery = await brought(loaded, dumps(rows(loaded)))
    if closed == "before":
        await loaded.worker.close()

    ResultsConsumer(loaded.worker).take(delivery)
    await loaded.worker.close()

    assert await left(loaded) == (1, 0)


async def test_result_that_is_unrecordable_is_a_dead_letter(
    loaded: LoneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = batch.COMMANDS[Finished]

    def fails(unit: Any, command: Finished) -> Any:
        if command.node_key.node == "n0":
            raise RuntimeError("on purpose")
        return record(unit, command)

    monkeypatch.setattr(batch, "COMMANDS", {**batch.COMMANDS, Finished: fails})

    ResultsConsumer(loaded.worker).take(await brought(loaded, dumps(rows(loaded))))
    await eventually(lambda: loaded.refused("unrecorded"))
    await loaded.say(Continue())

    assert await states(loaded) == [TaskState.PUBLISHED, TaskState.COMPLETED]
    assert await left(loaded) == (0, 1)


async def test_attempts_of_a_message_that_cannot_be_read_have_failed(loaded: LoneWorker) -> None:
    first, second = rows(loaded)
    second[8] = None
    nobody_s = [*first[:2], 0, *first[3:-1]]  # of no attempt
    ResultsConsumer(loaded.worker).take(await brought(loaded, dumps([["w"], nobody_s])))
    before = await left(loaded), await states(loaded)
    ResultsConsumer(loaded.worker).take(await brought(loaded, dumps([first, second])))

    await eventually(lambda: not list(loaded.worker.in_flight))
    assert before == ((0, 1), [TaskState.PUBLISHED] * 2)
    assert await states(loaded) == [TaskState.RETRY_WAIT] * 2
    assert await left(loaded) == (0, 2)


@pytest.mark.parametrize(("kind", "dead"), [(RESULT_TYPE, 1), (RESULTS_TYPE, 1), (STARTED_TYPE, 0), (PROGRESS_TYPE, 0)])
async def test_result_of_a_newer_version_is_a_dead_letter(loaded: LoneWorker, kind: str, dead: int) -> None:
    ResultsConsumer(loaded.worker).take(await brought(loaded, dumps(rows(loaded)), kind.removesuffix("v1") + "v2"))

    assert await left(loaded) == (0, dead)
    assert await states(loaded) == [TaskState.PUBLISHED] * 2


async def test_node_whose_claim_is_refused_holds_no_other_up_and_is_tried_once(
    lone: LoneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, claim_all = list[tuple[NodeKey, ...]](), batch.COMMANDS[Fill]

    def refuse(unit: UnitOfWork, command: Fill) -> Any:
        tried.append(command.node_keys)
        if tried[0][0] in command.node_keys:
            raise ValueError("The fault that was asked for")
        return claim_all(unit, command)

    monkeypatch.setattr(batch, "COMMANDS", {**batch.COMMANDS, Fill: refuse})
    await lone.start(wide(LEAST + 3, CAPABILITY))
    free = lone.capacity.room_for(CAPABILITY)
    lone.capacity.set_slots({CAPABILITY: LEAST})

    lone.worker.fill(CAPABILITY, 3)

    await eventually(lambda: lone.published() == LEAST + 2)
    lone.capacity.set_slots({CAPABILITY: 0})
    assert lone.capacity.room_for(CAPABILITY) == free - 2
    assert CAPABILITY not in lone.worker.backlog
