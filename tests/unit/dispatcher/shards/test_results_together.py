"""A message of several results: each is recorded by itself, and the message goes when all are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from coditect import Retry, Workflow
from coditect.broker.port import Delivery
from coditect.broker.topology import shard_queues
from coditect.model.message import Message
from coditect.wire import routing
from coditect.wire.attempt_results import RESULTS_TYPE
from coditect.wire.control import PROGRESS_TYPE, STARTED_TYPE
from coditect.wire.json import dumps
from coditect.wire.tasks import RESULT_TYPE
from coditect.workflow.states import TaskState
from dispatcher.ledger.commands import Finished, GoOn
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.rows import NodeRecord
from dispatcher.shards import batch
from dispatcher.shards.results import ResultsConsumer
from tests.support import eventually
from tests.unit.dispatcher.lone_worker import CAPABILITY, LoneWorker, open_worker

QUEUE = routing.results_queue(0)
Row = list[object]


@pytest.fixture
async def lone() -> AsyncIterator[LoneWorker]:
    """Two nodes, n0 and n1, are published; one that fails is not tried again while the test looks."""
    async with open_worker() as opened:
        flow = Workflow("two")
        for number in range(2):
            flow.task(CAPABILITY, name=f"n{number}", retry=Retry(first="1h", cap="1h"))
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


async def test_all_are_recorded_and_the_message_is_done_with(lone: LoneWorker) -> None:
    delivery = await brought(lone, dumps(rows(lone)))

    ResultsConsumer(lone.worker).take(delivery)
    await eventually(lambda: not list(lone.worker.in_flight))

    assert await states(lone) == [TaskState.COMPLETED] * 2
    assert await left(lone) == (0, 0)


async def test_a_message_of_none_is_done_with(lone: LoneWorker) -> None:
    ResultsConsumer(lone.worker).take(await brought(lone, b"[]"))

    assert await left(lone) == (0, 0)


async def test_late_ones_are_refused_and_counted_beside_the_others(lone: LoneWorker) -> None:
    first, second = rows(lone)
    second[2] = int(str(second[2])) + 1

    ResultsConsumer(lone.worker).take(await brought(lone, dumps([first, second])))
    await eventually(lambda: len(list(lone.worker.in_flight)) == 1)

    assert await states(lone) == [TaskState.COMPLETED, TaskState.PUBLISHED]
    assert lone.refused("late") == 1
    assert await left(lone) == (0, 0)


@pytest.mark.parametrize("closed", ["before", "after"])
async def test_what_is_not_recorded_goes_back(lone: LoneWorker, closed: str) -> None:
    delivery = await brought(lone, dumps(rows(lone)))
    if closed == "before":
        await lone.worker.close()

    ResultsConsumer(lone.worker).take(delivery)
    await lone.worker.close()

    assert await left(lone) == (1, 0)


async def test_one_that_cannot_be_recorded_takes_no_other_with_it_and_is_a_dead_letter(
    lone: LoneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = batch.COMMANDS[Finished]

    def fails(unit: Any, command: Finished) -> Any:
        if command.node_key.node == "n0":
            raise RuntimeError("on purpose")
        return record(unit, command)

    monkeypatch.setattr(batch, "COMMANDS", {**batch.COMMANDS, Finished: fails})

    ResultsConsumer(lone.worker).take(await brought(lone, dumps(rows(lone))))
    await eventually(lambda: lone.refused("unrecorded"))
    await lone.say(GoOn())

    assert await states(lone) == [TaskState.PUBLISHED, TaskState.COMPLETED]
    assert await left(lone) == (0, 1)


async def test_attempts_of_a_message_that_cannot_be_read_have_failed(lone: LoneWorker) -> None:
    first, second = rows(lone)
    second[8] = None

    ResultsConsumer(lone.worker).take(await brought(lone, dumps([first, second])))
    await eventually(lambda: not list(lone.worker.in_flight))

    assert await states(lone) == [TaskState.RETRY_WAIT] * 2
    assert await left(lone) == (0, 1)


async def test_what_does_not_say_whose_it_is_is_a_dead_letter(lone: LoneWorker) -> None:
    (first, _) = rows(lone)
    first[2] = 0  # of no attempt
    ResultsConsumer(lone.worker).take(await brought(lone, dumps([["w"], first[:-1]])))

    assert await left(lone) == (0, 1)
    assert await states(lone) == [TaskState.PUBLISHED] * 2


@pytest.mark.parametrize(("kind", "dead"), [(RESULT_TYPE, 1), (RESULTS_TYPE, 1), (STARTED_TYPE, 0), (PROGRESS_TYPE, 0)])
async def test_result_of_a_newer_version_is_a_dead_letter_and_a_hint_is_not(
    lone: LoneWorker, kind: str, dead: int
) -> None:
    ResultsConsumer(lone.worker).take(await brought(lone, dumps(rows(lone)), kind.removesuffix("v1") + "v2"))

    assert await left(lone) == (0, dead)
    assert await states(lone) == [TaskState.PUBLISHED] * 2
