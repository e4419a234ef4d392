"""Results that arrive together cost one transaction of the ledger and one round trip to RQ, however many they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import Redis
from rq import Queue

from coditect import Workflow
from coditect.model.capability import Priority
from dispatcher.ledger.commands import Finished
from dispatcher.shards import batch
from dispatcher.store.transaction import Transaction
from dispatcher.taskgraph.keys import queue_name
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.integration.registry.private_redis import PrivateRedis
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import completed
from tests.unit.dispatcher.lone_worker import CAPABILITY, LoneWorker, open_worker

pytestmark = pytest.mark.servers

RESULTS = 60


def scripts_run(client: Redis) -> int:
    """How many scripts Redis has run: our every round trip that changes anything is one."""
    stats: dict[str, Any] = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in ("eval", "evalsha"))


@pytest.fixture
async def lone(own_redis: PrivateRedis) -> AsyncIterator[LoneWorker]:
    async with (
        RedisTaskGraph(own_redis.url, worker="dispatcher-1", timeout_seconds=10) as graph,
        open_worker(graph) as opened,
    ):
        yield opened


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands each transaction was for."""
    found, run = list[int](), batch.run

    def noted(tr: Transaction, **given: batch.Batch) -> batch.BatchResult:
        found.append(len(given["batch"].commands))
        return run(tr, **given)

    monkeypatch.setattr(batch, "run", noted)
    return found


async def test_results_that_arrive_together_are_one_transaction_and_one_round_trip(
    own_redis: PrivateRedis, lone: LoneWorker, batches: list[int]
) -> None:
    flow = Workflow("fan")
    flow.task(CAPABILITY, after=[flow.task(CAPABILITY, name=f"n{at}") for at in range(RESULTS)], name="behind")
    await lone.start(flow)
    first, *others = [
        Finished(node_key, 1, flight.publication, completed()) for node_key, flight in lone.worker.in_flight
    ]
    with Redis.from_url(own_redis.url) as client:
        queue = Queue(queue_name(Priority.P1, lone.worker.shard), connection=client)
        await lone.say(first)
        await eventually(lambda: queue.finished_job_registry.count == 1)  # Redis has all scripts by now
        batches.clear()
        before = scripts_run(client)

        await asyncio.gather(*[lone.say(one) for one in others])
        await eventually(lambda: queue.finished_job_registry.count == RESULTS)

        assert scripts_run(client) == before + 1
        assert [commands for commands in batches if commands] == [RESULTS - 1]
        assert queue.started_job_registry.count == 1
