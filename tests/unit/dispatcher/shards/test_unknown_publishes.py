"""What was to be published and nobody confirmed is published again, by the same shard worker or by the next one."""

from __future__ import annotations

import pytest

from dispatcher.shards import worker as worker_module
from dispatcher.shards.publishing import publisher
from dispatcher.shards.worker import ShardWorker
from tests.support import eventually
from tests.unit.dispatcher.lone_worker import open_worker


async def test_publish_whose_confirm_is_unknown_is_repeated_under_another_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "PUBLISH_SECONDS", 0.05)
    async with open_worker() as lone:
        lone.server.block()
        await lone.start()
        first = lone.flight.publication

        await eventually(lambda: lone.flight.publication > first)
        lone.server.unblock()

        await eventually(lambda: lone.published() >= 2)


async def test_who_takes_a_shard_over_publishes_anew_what_may_not_have_been_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_worker() as lone:
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 3_600.0)  # its row is not cleared
        await lone.start()
        await eventually(lambda: lone.published() == 1)

        successor = ShardWorker(lone.worker.lease, lone.ports, on_lost=lambda _: None, nudge=lambda: None)
        await successor.open()

        await eventually(lambda: lone.published() == 2)
        await successor.close()
