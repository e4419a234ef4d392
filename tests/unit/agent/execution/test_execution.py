"""An execution changes its state as its table is drawn, and in no other way."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coditect.agent.execution import Execution, ExecutionState, ForbiddenTransition, Interruption
from coditect.model.capability import Priority
from coditect.model.task import Task

TRANSITIONS = ("load", "run", "leave", "abandon", "settle", "post", "answer", "end")
REQUESTS = ("cancel", "expire")
TASK = Task("try.it", Priority.P1, b"")
DRAWN = re.compile(r"^ +(\w+) --> (\w+): (.+)$", re.MULTILINE)


def picture() -> dict[tuple[ExecutionState, str], ExecutionState]:
    """The table in the docstring: the state that follows, by the state before and the transition."""
    arrows = DRAWN.findall(Execution.__doc__ or "")
    return {
        (ExecutionState[before], name): ExecutionState[after]
        for before, after, names in arrows
        for name in names.split(", ")
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

    if after is None:
        with pytest.raises(ForbiddenTransition, match=f"{before.name} cannot {name}"):
            getattr(one, name)()
    else:
        getattr(one, name)()

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
        one.cancel("enough") if name == "cancel" else one.expire_by_clock()

    assert one.interruption == Interruption(canceled="enough")
    assert (one.overdue, work.canceled) == (False, 2)


def test_second_cancel_request_does_not_disturb_a_handler_that_cleans_up() -> None:
    one, work = execution(ExecutionState.RUNNING)

    one.cancel("enough")
    one.cancel("again")

    assert one.interruption == Interruption(canceled="enough")
    assert work.canceled == 1


@pytest.mark.parametrize(("expire", "by_clock"), [(Execution.expire, False), (Execution.expire_by_clock, True)])
def test_end_of_the_time_tells_which_limit_it_was(expire: Any, by_clock: bool) -> None:
    one, _ = execution(ExecutionState.RUNNING)

    expire(one)

    assert one.overdue
    assert one.interruption == Interruption(by_clock=by_clock)


@pytest.mark.parametrize("verb", ["ack", "requeue", "reject"])
def test_deliveries_of_a_task_that_came_again_meanwhile_are_settled_with_the_first(verb: str) -> None:
    settled: list[str] = []

    def delivery(name: str) -> Any:
        return SimpleNamespace(**{verb: lambda: settled.append(name)})

    twice = Execution(TASK, delivery("first"), None)
    twice.attach(TASK, delivery("second"))
    getattr(twice, verb)()

    assert settled == ["first", "second"]
