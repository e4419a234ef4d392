"""Executions that wait for nothing share an asyncio task, and nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from coditect.agent.execution import Execution, TaskRunner
from coditect.model.capability import Priority
from coditect.model.task import Task
from tests.support import eventually

Handler = Callable[[Execution], Awaitable[None]]


class Bench:
    """Starts executions of one handler for each capability."""

    def __init__(self, **handlers: Handler) -> None:
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.executions: dict[Execution, None] = {}
        self.shifts = TaskRunner(self._perform, self.executions, asyncio.get_running_loop())
        self._handlers = handlers

    async def _perform(self, execution: Execution) -> None:
        self.tasks.append(asyncio.current_task())
        execution.run()
        try:
            await self._handlers[execution.task.capability](execution)
        finally:
            execution.leave()

    def start(self, *capabilities: str) -> list[Execution]:
        started: list[Execution] = []
        for name in capabilities:
            none, task = cast(Any, None), Task(name, Priority.P1, b"")
            execution = Execution(task, none, None)
            self.shifts.start(execution)
            started.append(execution)
        return started


async def nothing(_: Execution) -> None:
    """Waits for nothing."""


async def a_moment(_: Execution) -> None:
    await asyncio.sleep(0)


async def test_what_waits_for_nothing_shares_a_task() -> None:
    bench = Bench(quick=nothing)

    started = bench.start(*["quick"] * 5)
    await asyncio.sleep(0)

    assert len(set(bench.tasks)) == 1
    assert {one.work for one in started} == set(bench.tasks)


async def test_what_waits_has_a_task_of_its_own() -> None:
    gate, waiting = asyncio.Event(), []

    async def wait(execution: Execution) -> None:
        waiting.append(execution)
        await gate.wait()

    bench = Bench(slow=wait, quick=nothing)
    started = bench.start("slow", "quick", "slow", "quick", "slow")
    await eventually(lambda: len(bench.tasks) == 5)

    works = [one.work for one in waiting]
    assert len(waiting) == len(set(works)) == 3
    assert all(one.work is not None for one in started)
    gate.set()
    await asyncio.gather(*(work for work in works if work is not None))


async def test_capability_that_waited_starts_all_at_once_from_then_on() -> None:
    bench = Bench(slow=a_moment)
    bench.start("slow")
    await eventually(lambda: bench.tasks)

    bench.start(*["slow"] * 10)
    await asyncio.sleep(0)

    assert len(set(bench.tasks)) == 11


@pytest.mark.parametrize("waits_first", [False, True])
async def test_cancellation_ends_the_one_that_it_was_for(waits_first: bool) -> None:
    async def end_itself(execution: Execution) -> None:
        if waits_first:
            await asyncio.sleep(0)
        assert execution.work is not None
        execution.work.cancel()
        if waits_first:
            await asyncio.sleep(0)

    bench = Bench(mad=end_itself, quick=nothing)
    started = bench.start("quick", "mad", "quick", "quick")
    await eventually(lambda: len(bench.tasks) == 4 and all(one.work and one.work.done() for one in started))

    [_, mad, *behind] = started
    assert mad.work is not None and mad.work.cancelled()
    assert all(one.work is not mad.work and one.work and not one.work.cancelled() for one in behind)


async def test_error_that_comes_out_ends_none_of_those_behind() -> None:
    async def leave(_: Execution) -> None:
        raise asyncio.CancelledError

    bench = Bench(mad=leave, quick=nothing)
    bench.start("mad", "quick", "mad", "quick")

    await eventually(lambda: len(bench.tasks) == 4)


async def test_what_becomes_ready_in_a_shift_lets_the_event_loop_have_its_turn() -> None:
    turns: list[int] = []

    async def one_more(_: Execution) -> None:
        if len(bench.tasks) < 3:
            bench.start("chain")
            asyncio.get_running_loop().call_soon(turns.append, len(bench.tasks))

    bench = Bench(chain=one_more)
    bench.start("chain")
    await eventually(lambda: len(bench.tasks) == 3)

    assert turns == [1, 2]
    assert len(set(bench.tasks)) == 3
