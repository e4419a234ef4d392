"""What waits in a shard goes on with the worker that takes the shard over, however it was left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coditect import Workflow
from dispatcher.ledger import outbox
from dispatcher.ledger.commands import Claimed, Finished
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.shards import worker as worker_module
from dispatcher.shards.worker import ShardWorker
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import Ledger, completed
from tests.unit.dispatcher.lone_worker import CAPABILITY, ONLY, LoneWorker, open_worker

ROOM = 64
"""The tasks of a capability without slots that may be under way."""


@asynccontextmanager
async def successor_of(lone: LoneWorker) -> AsyncIterator[ShardWorker]:
    successor = ShardWorker(lone.worker.lease, lone.ports, on_lost=lambda _: None, nudge=lambda: None)
    await successor.open()
    yield successor
    await successor.close()


async def test_who_takes_a_shard_over_goes_on_with_what_was_left_over() -> None:
    flow = Workflow("map")
    flow.map(CAPABILITY, [1, 2], name="each")
    async with open_worker() as lone:
        former = Ledger(lone.database, lone.worker.lease, Policy(lone.worker.shard), goes_on=False)
        await former.start(flow.definition())
        assert former.unfinished, "its elements are not made yet"

        async with successor_of(lone):
            await eventually(lambda: lone.published() == 2)


async def test_who_takes_a_shard_over_publishes_what_waited_for_room() -> None:
    async with open_worker() as lone:
        lone.capacity.keep(CAPABILITY, ROOM)
        await lone.start()
        lone.capacity.free(CAPABILITY, ROOM)

        async with successor_of(lone) as successor:
            successor.fill(CAPABILITY, 1)
            await eventually(lambda: lone.published() == 1)


async def test_who_takes_a_shard_over_publishes_anew_all_that_may_not_have_been_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow, many = Workflow("many"), 101
    for number in range(many):
        flow.task(CAPABILITY, name=f"n{number}")
    async with open_worker() as lone:
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 3_600.0)  # their rows are not cleared
        lone.capacity.set_slots({CAPABILITY: many})
        await lone.start(flow)
        lone.worker.fill(CAPABILITY, many - ROOM)
        await eventually(lambda: lone.published() == many)

        async with successor_of(lone):
            await eventually(lambda: lone.published() == 2 * many)


@pytest.mark.parametrize("ended", [False, True])
async def test_who_takes_a_shard_over_clears_the_rows_of_tasks_that_agents_have(ended: bool) -> None:
    async with open_worker() as lone:
        await lone.start()
        number = lone.flight.publication

        async def cleared() -> bool:
            return await lone.rows() == []

        await eventually(cleared)
        claim = await lone.say(Claimed(ONLY, number, "worker-1"))
        if ended:
            await lone.say(Finished(ONLY, claim.fence, number, completed()))
        row = outbox.Row(number, *ONLY, claim.fence)
        await lone.database.run(lambda tr: outbox.put(tr, lone.worker.shard, row))  # as if it had not been cleared

        async with successor_of(lone):
            await eventually(cleared)
        assert lone.published() == 1
