"""An earlier dispatcher meets nodes that a later one wrote: it leaves them alone, and does all the rest."""

from __future__ import annotations

from itertools import pairwise
from time import monotonic
from typing import Any

import pytest

from coditect import Workflow
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker
from coditect.registry.memory import MemoryRegistry
from coditect.workflow.states import TaskState
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.commands import Command, Due, Fill, Finished, Proposed, Rebuild
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import claim
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.versions import STATUS
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.shards import batch, refusals
from dispatcher.shards import timers as timer_service
from dispatcher.shards.completions import CommandAnswer
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually
from tests.unit.dispatcher.ledger.workflows.test_rebuild import fan
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed
from tests.unit.dispatcher.lone_worker import CAPABILITY, ONLY, open_worker, start_of


async def rewrite(database: MemoryDatabase, node_key: NodeKey) -> bytes:
    """Writes the node as a later release; its row as it was."""
    key = STATUSES.pack(node_key)
    row = await database.read(lambda tr: tr.get(key))
    assert row is not None
    newer = STATUS.pack_as(STATUS.version + 1, STATUS.unpack(row))
    await database.run(lambda tr: tr.set(key, newer))
    return row


def chain() -> Workflow:
    flow = Workflow("chain")
    first = flow.task(CAPABILITY, name="first")
    second = flow.task(CAPABILITY, after=[first], name="second")
    flow.task(CAPABILITY, after=[second], name="third")
    return flow


@pytest.mark.parametrize("newer", ["second", "third"])
async def test_continuation_that_meets_one_is_passed_over(newer: str) -> None:
    outcomes = {"a": failed(), "b": completed()}
    async with open_worker() as lone:
        for workflow in outcomes:
            await lone.say(start_of(workflow, chain()))
        await eventually(lambda: lone.published() == 2)
        await rewrite(lone.database, NodeKey("a", newer))

        for node_key, flight in lone.worker.in_flight:
            lone.worker.put(Finished(node_key, flight.fence, flight.publication, outcomes[node_key.workflow]))

        await eventually(lambda: [node_key for node_key, _ in lone.worker.in_flight] == [NodeKey("b", "second")])
        await eventually(lambda: lone.published() == 3)


async def test_shard_with_one_under_way_is_opened_and_the_others_are_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flow = Workflow("two")
    for name in ("newer", "older"):
        flow.task(CAPABILITY, name=name)
    async with open_worker() as lone:
        await lone.start(flow)
        await eventually(lambda: lone.published() == 2)
        unsent = [outbox.Row(one.publication, "w", node_key.node, one.fence) for node_key, one in lone.worker.in_flight]
        await lone.worker.close()
        await rewrite(lone.database, NodeKey("w", "newer"))
        for row in unsent:
            await lone.database.run(lambda tr, row=row: outbox.put(tr, 0, row))  # type: ignore[misc]

        lone.worker = ShardWorker(lone.worker.lease, lone.ports, on_lost=lambda _: None, nudge=lambda: None)
        await lone.worker.open()
        await eventually(lambda: lone.published() == 3)
        under_way = {node_key.node for node_key, _ in lone.worker.in_flight}
        await lone.worker.close()

        assert under_way == {"older"}
        assert [row.node for row in await lone.rows()] == ["newer"], "whoever can read it publishes it"
    assert lone.worker.newer == 1
    assert [vars(one)["nodes"] for one in caplog.records if "left alone" in one.message] == [1]


async def test_one_counts_once_however_often_its_shard_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 10)
    async with open_worker() as lone, MemoryBroker(lone.server, name="successor") as broker:
        await lone.start()
        await eventually(lambda: lone.published() == 1)
        await lone.worker.close()
        await rewrite(lone.database, ONLY)
        successor = running_dispatcher(
            broker=broker,
            registry=MemoryRegistry(),
            clock=SystemClock(),
            database=lone.database,
            options=DispatcherOptions(shards=1, owner="me"),
        )
        async with successor as running:
            await eventually(lambda: 0 in running.ownership.workers)
            await running.ownership._close(0)
            await eventually(lambda: 0 in running.ownership.workers)

            assert running.ownership.figures()["newer"] == 1


async def test_result_of_one_is_kept_until_the_row_can_be_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[NodeKey] = []
    record = batch.COMMANDS[Finished]

    def count(unit: UnitOfWork, command: Finished) -> Any:
        tried.append(command.node_key)
        return record(unit, command)

    monkeypatch.setattr(batch, "COMMANDS", {**batch.COMMANDS, Finished: count})
    monkeypatch.setattr(refusals, "PAUSES_OF_KEPT", 1)
    async with open_worker() as lone:
        await lone.start()
        await eventually(lambda: lone.published() == 1)
        as_it_was = await rewrite(lone.database, ONLY)

        answer: CommandAnswer[Any] = CommandAnswer()

        lone.worker.put(Finished(ONLY, lone.flight.fence, lone.flight.publication, completed()), answer)
        await eventually(lambda: len(tried) > 10 * refusals.MOST_TRIES)
        settled_before = answer.future.done()
        await lone.database.run(lambda tr: tr.set(STATUSES.pack(ONLY), as_it_was))

        await answer.future
        row = await lone.database.read(lambda tr: tr.get(STATUSES.pack(ONLY)))
    assert not settled_before
    assert row is not None
    assert (NodeRecord.unpack(row).state, lone.refused("unrecorded")) == (TaskState.COMPLETED, 0)
    assert sum("left alone" in one.message for one in caplog.records) == 1


@pytest.mark.once
async def test_timer_of_one_is_looked_at_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    act = batch.COMMANDS[Due]

    def count(unit: UnitOfWork, command: Due) -> Any:
        looked.append(monotonic())
        return act(unit, command)

    monkeypatch.setattr(batch, "COMMANDS", {**batch.COMMANDS, Due: count})
    monkeypatch.setattr(timer_service, "AGAIN_MS", 100)
    async with open_worker() as lone:
        await lone.start()
        await rewrite(lone.database, ONLY)
        await lone.database.run(lambda tr: timers.put(tr, 0, Timer(*ONLY, claim.RETRY_TIMER, 0)))

        lone.worker.timer_service.look_again()
        await eventually(lambda: len(looked) >= 10)

    pauses = [later - earlier for earlier, later in pairwise(looked)]
    assert sum(pause > 0.09 for pause in pauses) >= 4, "each look is two tries"


async def test_broker_that_lost_everything_gets_all_but_them(ledger: Ledger) -> None:
    await ledger.start(fan(3).definition())
    ledger.published.clear()
    await rewrite(ledger.database, NodeKey("w", "n0001"))

    await ledger.batch(Rebuild("marker-1", "marker-1"))

    assert [publication.node_key.node for publication in ledger.published] == ["n0000", "n0002"]


@pytest.mark.parametrize(
    "command", [Fill("work", 1), Proposed((NodeKey("w", "n0000"), NodeKey("w", "n0001")))], ids=["backlog", "proposed"]
)
async def test_ready_one_is_passed_over(ledger: Ledger, command: Command) -> None:
    ledger.room = {"": 0}
    await ledger.start(fan(3).definition())
    await rewrite(ledger.database, NodeKey("w", "n0000"))
    ledger.room = {"": int(isinstance(command, Proposed))}

    await ledger.batch(command)

    assert [publication.node_key.node for publication in ledger.published] == ["n0001"]
