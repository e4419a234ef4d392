"""An execution: its states, the asyncio task that it runs in, and the outcomes that an agent remembers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coditect.agent.execution import (
    MAX_OUTCOME_BYTES,
    MAX_OUTCOMES,
    OUTCOME_SECONDS,
    OVER_BY_CLOCK,
    TIME_OVER,
    Execution,
    ExecutionState,
    ForbiddenTransition,
    Interruption,
    Remembered,
    TaskRunner,
)
from coditect.model.capability import Priority
from coditect.model.result import Outcome, Status
from coditect.model.task import ExecutionKey, Task
from tests.support import eventually

ENTERED = tuple(state.name for state in ExecutionState if state.name not in ("ACCEPTED", "INTERRUPTED", "HANDLED"))
TRANSITIONS = (*ENTERED, "leave", "abandon")
REQUESTS = ("cancel", "expire")
TASK = Task("try.it", Priority.P1, b"")
DRAWN = re.compile(r"^ +(\w+) --> (\w+)(?:: (.+))?$", re.MULTILINE)


def picture() -> dict[tuple[ExecutionState, str], ExecutionState]:
    """The table in the docstring: the state that follows, by the state before and the transition or entered state."""
    arrows = DRAWN.findall(Execution.__doc__ or "")
    return {
        (ExecutionState[before], name): ExecutionState[after]
        for before, after, names in arrows
        for name in (names or after).split(", ")
    }


class Work:
    """An asyncio task that counts its cancellations."""

    canceled = 0

    def cancel(self) -> None:
        self.canceled += 1


def execution(state: ExecutionState = ExecutionState.ACCEPTED) -> tuple[Execution, Work]:
    work = Work()
    return Execution(TASK, cast(Any, None), None, state=state, work=cast("asyncio.Task[None]", work)), work


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.parametrize("before", ExecutionState)
def test_transition_is_as_drawn_or_is_refused_and_changes_nothing(before: ExecutionState, name: str) -> None:
    one, work = execution(before)
    after = picture().get((before, name))
    move = partial(one.enter, ExecutionState[name]) if name in ENTERED else getattr(one, name)

    if after is None:
        with pytest.raises(ForbiddenTransition, match=f"{before.name} cannot (become )?{name}"):
            move()
    else:
        move()

    assert one.state is (after or before)
    assert (one.interruption, work.canceled) == (None, 0)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("before", ExecutionState)
def test_request_to_end_reaches_the_handler_as_drawn_or_has_no_effect(before: ExecutionState, name: str) -> None:
    one, work = execution(before)
    after = picture().get((before, name))

    one.cancel("enough") if name == "cancel" else one.expire()

    assert one.state is (after or before)
    assert work.canceled == one.asked_to_end == (after is not None)


def test_picture_begins_and_ends_and_draws_every_state_and_transition() -> None:
    drawn, doc = picture(), Execution.__doc__ or ""

    assert {name for _, name in drawn} == {*TRANSITIONS, *REQUESTS}
    assert {before for before, _ in drawn} | set(drawn.values()) == set(ExecutionState)
    assert "[*] --> ACCEPTED\n" in doc and "ENDED --> [*]\n" in doc
    assert not [before for before, _ in drawn if before is ExecutionState.ENDED]


def test_leaving_a_handler_tells_whether_it_was_asked_to_end() -> None:
    asked, other = execution(ExecutionState.RUNNING)[0], execution(ExecutionState.RUNNING)[0]
    asked.expire()

    assert (asked.leave(), other.leave()) == (True, False)


@pytest.mark.parametrize("first", ["cancel", "expire"])
def test_cancel_request_counts_more_than_the_end_of_the_time_and_each_reaches_the_handler(first: str) -> None:
    one, work = execution(ExecutionState.RUNNING)

    for name in sorted(REQUESTS, reverse=first == "expire"):
        one.cancel("enough") if name == "cancel" else one.expire(OVER_BY_CLOCK)

    assert one.interruption == Interruption(canceled="enough")
    assert (one.overdue, work.canceled) == (False, 2)


def test_second_cancel_request_does_not_disturb_a_handler_that_cleans_up() -> None:
    one, work = execution(ExecutionState.RUNNING)

    one.cancel("enough")
    one.cancel("again")

    assert one.interruption == Interruption(canceled="enough")
    assert work.canceled == 1


@pytest.mark.parametrize("why", [TIME_OVER, OVER_BY_CLOCK])
def test_end_of_the_time_tells_which_limit_it_was(why: Interruption) -> None:
    one, _ = execution(ExecutionState.RUNNING)

    one.expire(why)

    assert (one.overdue, one.interruption) == (True, why)


@pytest.mark.parametrize("verb", ["ack", "requeue", "reject"])
def test_deliveries_of_a_task_that_came_again_meanwhile_are_settled_with_the_first(verb: str) -> None:
    settled: list[str] = []

    def delivery(name: str) -> Any:
        return SimpleNamespace(**{verb: lambda: settled.append(name)})

    twice = Execution(TASK, delivery("first"), None)
    twice.attach(TASK, delivery("second"))
    getattr(twice, verb)()

    assert settled == ["first", "second"]


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
        execution.enter(ExecutionState.RUNNING)
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


BEGIN_MS = 1_800_000_000_000
MINUTE_MS = 60_000


def key(number: int) -> ExecutionKey:
    return (f"task-{number}", 0, 1, 0, "a.b", 0)


def outcome(number: int, *, body: bytes = b"1", at_ms: int = BEGIN_MS) -> Outcome:
    return Outcome(Status.COMPLETED, body, f"task-{number}", None, finished_at_ms=at_ms)


def kept(remembered: Remembered, many: int) -> list[int]:
    return [number for number in range(many) if remembered.get(key(number)) is not None]


def test_the_latest_half_of_the_most_is_always_remembered_and_more_than_the_most_never() -> None:
    remembered, many = Remembered(), MAX_OUTCOMES * 2 + 7
    for number in range(many):
        remembered.put(key(number), outcome(number))

    found = kept(remembered, many)
    assert found == list(range(found[0], many))
    assert MAX_OUTCOMES // 2 <= len(found) <= MAX_OUTCOMES


def test_large_outcomes_are_bounded_by_their_bytes() -> None:
    remembered, body = Remembered(), b"x" * (MAX_OUTCOME_BYTES // 32)
    for number in range(100):
        remembered.put(key(number), outcome(number, body=body))

    assert 16 <= len(kept(remembered, 100)) <= 32


def test_an_outcome_is_remembered_for_its_time_and_forgotten_when_that_has_passed_twice() -> None:
    remembered, minutes = Remembered(), int(OUTCOME_SECONDS // 60)
    for number in range(4 * minutes):
        remembered.put(key(number), outcome(number, at_ms=BEGIN_MS + number * MINUTE_MS))
        found = kept(remembered, number + 1)
        assert found[0] <= max(0, number - minutes)
        assert found[0] >= number - 2 * minutes - 2


def test_a_later_outcome_of_an_execution_takes_the_place_of_an_earlier_one() -> None:
    remembered = Remembered()
    for number in range(MAX_OUTCOMES // 2):
        remembered.put(key(number), outcome(number))
    remembered.put(key(0), outcome(0, body=b"2"))

    assert (found := remembered.get(key(0))) is not None and found.body == b"2"
