"""The blocking client reads results in parts by an ordinary loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import pytest

from coditect import Agent, Retry, SyncClient, TaskCanceled, TaskFailed
from tests.unit.sync.scene import SECONDS, FleetClient


def writer(closed: threading.Event) -> Agent:
    agent = Agent("writer")

    @agent.capability("text.rows", retry=Retry(max_attempts=1))
    async def rows(most: int) -> AsyncIterator[int | None]:
        try:
            for number in range(most):
                yield None if number == 1 else number
            raise ValueError("the last row is missing")
        finally:
            closed.set()

    return agent


def test_the_loop_gives_every_part_none_too_and_raises_the_failure_after_them() -> None:
    got = []
    with SyncClient(FleetClient(writer(threading.Event()))) as client:
        handle = client.submit("text.rows", 4, stream=True)
        with pytest.raises(TaskFailed, match="last row"):
            for row in handle.stream(timeout=SECONDS):
                got.append(row)

    assert got == [0, None, 2, 3]


def test_leaving_the_loop_cancels_the_task() -> None:
    closed = threading.Event()
    with SyncClient(FleetClient(writer(closed))) as client:
        handle = client.submit("text.rows", 100_000, stream=True)
        for row in handle.stream(timeout=SECONDS):
            if row == 10:
                break
        assert closed.wait(SECONDS)
        with pytest.raises(TaskCanceled):
            handle.result(timeout=SECONDS)
