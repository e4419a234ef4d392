"""The worker of one shard: what becomes of a batch that fails, and of what is on the shard worker then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from coditect import Retry, Workflow
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.errors import CoditectError, Retryable
from coditect.messaging.event_publisher import Events
from coditect.registry.reference_clock import ReferenceClock
from coditect.workflow.states import TaskState
from dispatcher.capacity import LEAST, Capacity
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Due, Finished, GoOn, Proposed
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.keyspace import RUNS, STATUSES
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.attempts import UNRECORDABLE
from dispatcher.ledger.nodes.inputs import FAILURE, value_of
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows import continuations
from dispatcher.ports import Ports
from dispatcher.shards import batch
from dispatcher.shards.continuations import log as continuations_log
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.errors import StoreFailed, StoreUnavailable
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.transaction import Transaction
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_ledger import completed, few_steps
from tests.unit.dispatcher.lone_worker import ONLY, open_worker, start_of

Value = TypeVar("Value")


class Strange(GoOn):
    """A command that nobody has taught a batch to do."""


class Losing(MemoryDatabase):
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

    def of(self, name: str) -> _One:
        return _One(name, self.told)


class _One:
    def __init__(self, name: str, told: list[tuple[str, str]]) -> None:
        self._name = name
        self._told = told

    def done(self, answer: Any) -> None:
        self._told.append((self._name, "refused" if isinstance(answer, CoditectError) else "done"))

    def undone(self) -> None:
        self._told.append((self._name, "undone"))


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
        worker.put(GoOn(), settled.of("first"))
        worker.put(Strange(), settled.of("strange"))
        worker.put(GoOn(), settled.of("last"))

        await worker.open()
        await eventually(lambda: len(settled.told) == 3)

    assert settled.told == [("first", "done"), ("strange", "refused"), ("last", "done")]
    assert lost == []


async def test_commands_of_a_batch_that_the_store_refused_keep_their_order() -> None:
    settled = Settled()
    async with new_worker([]) as (worker, database):
        await worker.open()
        database.batches, database.refusal = 0, StoreUnavailable("The fault that was asked for")
        for name in ("first", "second", "third"):
            worker.put(GoOn(), settled.of(name))
        await eventually(lambda: database.batches < 0)
        database.batches = 1_000_000
        await eventually(lambda: len(settled.told) == 3)

    assert [name for name, _ in settled.told] == ["first", "second", "third"]


async def test_commands_that_a_batch_left_over_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "is_aging", True)  # each does one command
    settled = Settled()
    async with new_worker([]) as (worker, _):
        for name in ("first", "second", "third", "fourth"):
            worker.put(GoOn(), settled.of(name))

        await worker.open()
        await eventually(lambda: len(settled.told) == 4)

    assert [name for name, _ in settled.told] == ["first", "second", "third", "fourth"]


class Slow(GoOn):
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
        done = run(tr, replace(one, commands=[GoOn() for _ in one.commands]))
        if any(isinstance(command, Slow) for command in one.commands):
            left -= 1
        if (left >= 0 and Slow() in one.commands) or len(one.commands) > most_commands:
            tr._until = 0.0  # the time that it may take is over
        return done

    monkeypatch.setattr(batch, "run_once", slow)
    async with new_worker([]) as (worker, _):
        for name, command in (("first", GoOn()), ("slow", Slow()), ("last", GoOn())):
            worker.put(command, settled.of(name))

        await worker.open()
        await eventually(lambda: len(settled.told) == 3)

    assert settled.told == [*zip(("first", "slow", "last"), told, strict=True)]


async def test_what_is_left_over_and_always_takes_too_long_is_set_aside_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few_steps(monkeypatch, 1)

    def release(unit: UnitOfWork, node_key: NodeKey, after: str, most: int) -> int:
        if node_key.workflow == "slow":
            unit.tr._until = 0.0  # the time that it may take is over
        return advance.release(unit, node_key, after, most)

    monkeypatch.setattr(continuations, "_CONTINUED", {advance.RELEASE: release})
    flow = Workflow("wide")
    for name in "abc":
        flow.task("work", name=name)
    async with open_worker() as lone:
        for workflow in ("slow", "swift"):
            await lone.say(start_of(workflow, flow))

        await eventually(lambda: lone.published() == 1 + 3)

    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "it is set aside" in record.message
    assert (vars(record)["workflow"], vars(record)["kind"]) == ("slow", advance.RELEASE)


@pytest.mark.once
@in_virtual_time
async def test_what_took_too_long_is_tried_again_after_a_while_and_each_time_later() -> None:
    tried: list[float] = []

    def release(unit: UnitOfWork, node_key: NodeKey, after: str, most: int) -> int:
        tried.append(asyncio.get_running_loop().time())
        if len(tried) <= 3 * batch.MOST_SLOW:
            unit.tr._until = -1.0  # the time that it may take is over
        return advance.release(unit, node_key, after, most)

    with pytest.MonkeyPatch.context() as patched:
        few_steps(patched, 1)
        patched.setattr(continuations_log, "disabled", True)  # a fleet takes the error for a failure of the test
        patched.setattr(continuations, "_CONTINUED", {advance.RELEASE: release})
        flow = Workflow("two")
        for name in "ab":
            flow.task("work", name=name)
        async with open_worker() as lone:
            await lone.say(start_of("w", flow))
            await eventually(lambda: lone.published() == 2, seconds=600)

    ends = [tried[number] for number in range(batch.MOST_SLOW - 1, len(tried), batch.MOST_SLOW)]
    begins = [tried[number] for number in range(batch.MOST_SLOW, len(tried), batch.MOST_SLOW)]
    assert len(tried) == 3 * batch.MOST_SLOW + 1
    assert [round(begin - end) for end, begin in zip(ends, begins, strict=True)] == [60, 120, 240]


async def test_what_rq_proposes_is_claimed_even_if_it_is_too_much_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Workflow("wide")
    for name in "abc":
        flow.task("work", name=name)
    async with open_worker() as lone:
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
            worker.put(GoOn(), settled.of(name))

        await worker.open()
        database.batches = 2  # the one that they share, and that of the strange one
        await eventually(lambda: len(settled.told) == 4)

    assert settled.told == [("strange", "refused"), ("second", "undone"), ("third", "undone"), ("fourth", "undone")]
    assert lost == [worker.shard], "one commit was refused"


async def test_store_that_failed_for_good_closes_the_worker_and_what_it_holds_goes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settled, lost = Settled(), list[int]()
    async with new_worker(lost) as (worker, database):
        await worker.open()
        database.batches, database.refusal = 0, StoreFailed("The disk is full")
        for name in ("first", "second"):
            worker.put(GoOn(), settled.of(name))
        await eventually(lambda: len(settled.told) == 2)
        worker.put(GoOn(), settled.of("third"))

    assert settled.told == [("first", "undone"), ("second", "undone"), ("third", "undone")]
    assert lost == [worker.shard]
    assert "A shard is another's by now" not in caplog.text


@pytest.mark.parametrize("attempts", [1, 3])
async def test_result_that_cannot_be_recorded_is_a_failed_attempt_and_in_the_end_a_dead_letter(attempts: int) -> None:
    flow = Workflow("one")
    flow.task("work", name="only", retry=Retry(max_attempts=attempts, first="1ms", cap="1ms"))
    settled = Settled()
    async with open_worker() as lone:
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


async def test_a_request_that_waited_longer_than_its_sender_is_not_carried_out() -> None:
    now = asyncio.get_running_loop().time()
    async with open_worker() as lone:
        with pytest.raises(Retryable):
            await lone.say(replace(start_of("late"), until=now - 1))
        timely = await lone.say(replace(start_of("timely"), until=now + 60))

        known = [await lone.database.read(lambda tr, w=w: tr.get(RUNS.pack((w,)))) for w in ("late", "timely")]  # type: ignore[misc]

    assert timely["state"] == "accepted"
    assert [row is not None for row in known] == [False, True]
