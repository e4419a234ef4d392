"""Processes of handlers that are replaced after a number of tasks, or when they hold too much memory."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from coditect import Agent
from coditect.agent import pool
from coditect.errors import SetupError, TaskFailed
from tests.support import children_with, eventually
from tests.unit.agent.processes.replaced_agent import FOLDER, MANY_BYTES, replaced
from tests.unit.agent.scene import Scene, failure_of


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def workers() -> set[int]:
    """The processes of handlers."""
    return children_with("coditect.agent.worker")


async def test_process_ends_after_its_tasks_failed_ones_too_and_closes_its_lifespan(scene: Scene, folder: Path) -> None:
    client = await scene.serve(replaced)

    pids = [await client.request("replaced.twice", "quick", int, timeout="60s") for _ in range(4)]
    failed = [int((await failure_of(await client.submit("replaced.twice", "fail"))).message) for _ in range(2)]
    pids += [*failed, await client.request("replaced.twice", "quick", int, timeout="60s")]

    assert list(Counter(pids).values()) == [2, 2, 2, 1]
    await eventually(lambda: all((folder / f"closed-{pid}").exists() for pid in pids[:-1]))
    await eventually(lambda: not {*pids[:-1]} & workers())


async def test_successor_is_ready_before_the_last_task_ends_and_takes_the_next_one(scene: Scene, folder: Path) -> None:
    client = await scene.serve(replaced)
    first = await client.request("replaced.twice", "quick", int, timeout="60s")
    assert workers() == {first}

    last = await client.submit("replaced.twice", "wait")
    await eventually(lambda: len(workers()) == 2)
    (successor,) = workers() - {first}
    (folder / "go").touch()

    assert await last.result(int) == first
    assert await client.request("replaced.twice", "quick", int, timeout="60s") == successor


async def test_tasks_of_all_slots_are_done_while_processes_are_replaced(scene: Scene) -> None:
    client = await scene.serve(replaced)

    handles = [one async for one in client.submit_many("replaced.twice", ["quick"] * 20)]
    pids = Counter(await asyncio.gather(*(one.result(int, timeout="120s") for one in handles)))

    assert (pids.total(), max(pids.values())) == (20, 2)


async def test_process_that_holds_too_much_memory_is_replaced_after_the_task(scene: Scene) -> None:
    client = await scene.serve(replaced)
    small = [await client.request("replaced.large", "stay", int, timeout="60s") for _ in range(2)]

    grown = await client.request("replaced.large", "grow", int, timeout="60s")
    after = await client.request("replaced.large", "stay", int, timeout="60s")

    assert small == [grown] * 2, "the task that grew it was finished"
    assert after != grown
    await eventually(lambda: grown not in workers())
    assert psutil.Process(after).memory_info().rss < MANY_BYTES


async def test_successor_that_cannot_be_started_costs_no_task(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await scene.serve(replaced)
    first = await client.request("replaced.twice", "quick", int, timeout="60s")
    spawn, refused = pool._spawn, list[Any]()

    async def refusing(*given: Any) -> Any:
        if not refused:
            refused.append(given)
            raise pool.WorkerUnavailable("no memory")
        return await spawn(*given)

    monkeypatch.setattr(pool, "_spawn", refusing)

    assert await client.request("replaced.twice", "quick", int, timeout="60s") == first
    assert await client.request("replaced.twice", "quick", int, timeout="60s") != first
    assert refused


async def test_successor_outlives_a_last_task_that_dies_and_ends_with_the_agent(scene: Scene) -> None:
    running = await scene.start(replaced)
    client = await scene.client()
    first = await client.request("replaced.twice", "quick", int, timeout="60s")
    with pytest.raises(TaskFailed, match="process"):
        await client.request("replaced.twice", "die", timeout="60s")

    after = await client.request("replaced.twice", "quick", int, timeout="60s")
    assert after != first
    await running.stop()

    await eventually(lambda: not workers())
    assert not psutil.pid_exists(after)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"max_tasks_per_process": 3}, "process=True"),
        ({"max_memory": "512MB"}, "process=True"),
        ({"process": True, "max_tasks_per_process": 0}, "max_tasks_per_process"),
        ({"process": True, "max_memory": "much"}, "512MB"),
        ({"process": True, "max_memory": 1}, "at least 1MB"),
        ({"process": True, "max_memory": True}, "at least 1MB"),
    ],
)
def test_wrong_limit_is_refused_with_its_line(how: dict[str, Any], told: str) -> None:
    with pytest.raises(SetupError, match=told) as refused:
        Agent("shop").capability("shop.price", **how)
    assert __file__ in str(refused.value)


def test_memory_is_a_text_with_a_unit_or_a_number_of_bytes() -> None:
    agent = Agent("shop")
    given: list[str | int] = ["512MB", "1.5GiB", 2_000_000]
    for number, most in enumerate(given):
        agent.capability(f"shop.price{number}", process=True, max_memory=most)(os.strerror)

    found = [one.process_limits.max_bytes for one in agent.capabilities if one.process_limits is not None]
    assert found == [512_000_000, 1_610_612_736, 2_000_000]
