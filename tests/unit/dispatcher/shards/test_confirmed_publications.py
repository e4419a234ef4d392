"""Outbox rows of confirmed publications go with the next batch, and get one of their own only in idle time."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

import dispatcher.shards.worker as worker_module
from dispatcher.ledger.commands import GoOn
from dispatcher.shards.batch import Batch, BatchResult
from dispatcher.shards.completions import CommandAnswer
from dispatcher.shards.publishing.confirmed import ConfirmedPublications
from dispatcher.store.errors import StoreUnavailable
from tests.support import eventually
from tests.unit.dispatcher.lone_worker import open_worker


async def test_numbers_are_overdue_only_without_a_batch_for_a_while() -> None:
    overdue = asyncio.Event()
    confirmed = ConfirmedPublications(overdue.set)

    confirmed.add([1, 2], within_seconds=0.01)
    assert confirmed.take() == [1, 2]
    assert confirmed._timer is None, "a batch has taken them along"
    assert not overdue.is_set()

    confirmed.add([3], within_seconds=0.01)
    await asyncio.wait_for(overdue.wait(), 5)

    assert (confirmed.are_overdue, confirmed.take(), confirmed.are_overdue) == (True, [3], False)


async def test_a_closed_list_sets_no_timer_and_keeps_its_numbers() -> None:
    confirmed = ConfirmedPublications(lambda: None)
    confirmed.add([1], within_seconds=3_600)

    confirmed.close()
    confirmed.add([2], within_seconds=3_600)

    assert confirmed._timer is None
    assert confirmed.take() == [1, 2]


async def test_a_confirm_that_comes_during_a_commit_causes_no_commit_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    committed: list[Batch] = []
    async with open_worker() as lone:
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 3_600.0)
        run = lone.database.run

        async def confirmed_meanwhile(body: partial[BatchResult]) -> BatchResult:
            if not committed:
                lone.worker._note_confirmed([999])
            committed.append(body.keywords["batch"])
            return await run(body)

        with monkeypatch.context() as patched:
            patched.setattr(lone.database, "run", confirmed_meanwhile)
            for _ in range(2):
                answer = CommandAnswer[object]()
                lone.worker.put(GoOn(), answer)
                await answer.future

    assert [len(one.commands) for one in committed] == [1, 1], "none for the confirmed row alone"
    assert [list(one.confirmed) for one in committed] == [[], [999]]


async def test_rows_of_a_commit_that_failed_are_cleared_with_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_worker() as lone:
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 3_600.0)
        await lone.start()
        await eventually(lambda: len(lone.worker._confirmed))
        run, refused = lone.database.run, list[Any]()

        async def refuse_once(body: Any) -> Any:
            if not refused:
                refused.append(body)
                raise StoreUnavailable("The fault that was asked for")
            return await run(body)

        with monkeypatch.context() as patched:
            patched.setattr(lone.database, "run", refuse_once)
            await lone.say(GoOn())

        assert len(refused) == 1
        assert await lone.rows() == [], "the next owner would publish the task again"
