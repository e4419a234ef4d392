"""Limits of time that the ledger keeps: until when a node may be started, how long it may run, until when it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coditect import From, Retry, Workflow
from coditect.model.ids import AgentId
from coditect.model.result import Failure, Outcome, Status
from coditect.wire.control import Verb
from coditect.wire.json import dumps
from coditect.wire.workflow_tasks import Verdict
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Command, Due, Lost, NoQueue
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import TIMERS
from dispatcher.ledger.nodes.inputs import FAILURE
from dispatcher.ledger.timers import Timer
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, claim_of, completed, failed, one_node

PLACE = NodeKey("w", "one")


def expired(*, by_agent: bool = True) -> Outcome:
    """What an agent, or the broker, says of a task that came too late."""
    failure = Failure("expired", "TaskExpired", "too late")
    body = dumps(failure.as_json())
    return Outcome(Status.REJECTED, body, None, None, AGENT if by_agent else None, started_at_ms=7, failure=failure)


async def waiting(ledger: Ledger) -> dict[str, Timer]:
    found = await ledger.database.read(lambda tr: timers.due(tr, 0, ledger.now_ms + 10**9))
    return {timer.kind: timer for timer in found}


async def ended(ledger: Ledger) -> tuple[TaskState, str]:
    """How the node ended; nothing of it waits any more."""
    row = await ledger.node("one")
    assert await ledger.rows(TIMERS, "w") == []
    return row.state, row.reason


# -- start_within ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 9])
async def test_node_that_nobody_starts_ends_and_is_not_tried_again(ledger: Ledger, room: int) -> None:
    ledger.room = {"": room}
    await ledger.start(one_node(start_within="10s", retry=Retry(max_attempts=5)))
    await ledger.pass_time(9)
    early = (await ledger.node("one")).state
    await ledger.pass_time(2)
    cancels = ledger.seen[-1].cancels
    ledger.room = {"": 9}
    await ledger.fill("work", 9)

    assert early is (TaskState.PUBLISHED if room else TaskState.READY)
    assert [one.task.limits.start_by_ms for one in ledger.published] == [1_010_000] * bool(room)
    assert await ended(ledger) == (TaskState.FAILED, "start_timeout")
    assert (await ledger.state(), cancels) == (WorkflowState.FAILED, [(PLACE, 1)] * bool(room))
    assert (await ledger.value("one", FAILURE))["type"] == "TaskExpired"


async def test_node_without_a_queue_waits_no_longer_for_being_offered_again_and_again(ledger: Ledger) -> None:
    await ledger.start_one(start_within="3s")
    for _ in range(4):
        await ledger.batch(NoQueue(PLACE, ledger.published[-1].number))
        await ledger.pass_time(1)

    assert len({publication.task.limits.start_by_ms for publication in ledger.published}) == 1
    assert await ended(ledger) == (TaskState.FAILED, "start_timeout")


async def test_node_that_was_started_in_time_may_take_longer(ledger: Ledger) -> None:
    publication = await ledger.start_one(start_within="10s")
    await ledger.pass_time(9)
    await ledger.batch(ledger.began(publication))
    await ledger.pass_time(60)

    await ledger.batch(ledger.finished(publication, completed(1)))

    assert await ended(ledger) == (TaskState.COMPLETED, "")


async def test_every_attempt_waits_its_own_time(ledger: Ledger) -> None:
    publication = await ledger.start_one(start_within="10s", retry=Retry(max_attempts=3, first="30s", cap="30s"))
    await ledger.batch(ledger.finished(publication, failed(retryable=True)))
    await ledger.pass_time(12)
    resting = (await ledger.node("one")).state
    await ledger.pass_time(4)
    second = ledger.published[-1]
    await ledger.batch(ledger.began(second))
    await ledger.pass_time(300)
    await ledger.batch(Lost(PLACE, second.number, AGENT))
    third = ledger.published[-1]
    await ledger.pass_time(11)

    bounds = [publication.task.limits.start_by_ms for publication in (second, third)]
    assert (resting, bounds) == (TaskState.RETRY_WAIT, [1_026_000, 1_326_000])
    assert await ended(ledger) == (TaskState.FAILED, "start_timeout")


@pytest.mark.parametrize("by_agent", [True, False], ids=["agent", "broker"])
async def test_who_refuses_what_came_too_late_ends_it_so(ledger: Ledger, by_agent: bool) -> None:
    publication = await ledger.start_one(start_within="10s", deadline="1h")
    ledger.now_ms += 10_000

    command = ledger.finished(publication, expired(by_agent=by_agent))
    await ledger.batch(command if by_agent else replace(command, fence=0))

    assert await ended(ledger) == (TaskState.FAILED, "start_timeout")
    assert (await ledger.node("one")).started_ms is None


async def test_claim_that_comes_too_late_is_stale_and_ends_the_node(ledger: Ledger) -> None:
    publication = await ledger.start_one(start_within="10s")
    ledger.now_ms += 10_000

    claim = await claim_of(ledger, publication)

    assert (claim.verdict, await ended(ledger)) == (Verdict.STALE, (TaskState.FAILED, "start_timeout"))


async def test_paused_workflow_begins_the_time_anew_when_it_goes_on(ledger: Ledger) -> None:
    ledger.room = {"": 0}
    await ledger.start(one_node(start_within="10s"))
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    await ledger.pass_time(60)
    paused = (await ledger.node("one")).state
    ledger.room = {"": 9}

    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.fill("work", 1)
    (publication,) = ledger.published
    await ledger.pass_time(11)

    assert (paused, publication.task.limits.start_by_ms) == (TaskState.READY, 1_070_000)
    assert await ended(ledger) == (TaskState.FAILED, "start_timeout")


# -- deadline -------------------------------------------------------------------------------------------------


async def test_deadline_ends_what_runs_and_its_agent_is_told(ledger: Ledger) -> None:
    publication = await ledger.start_one(deadline="10s")
    await ledger.batch(ledger.began(publication))
    await ledger.pass_time(10)
    told = ledger.seen[-1].cancels

    await ledger.batch(ledger.finished(publication, completed("late")))

    assert (publication.task.limits.deadline_ms, told) == (1_010_000, [(PLACE, publication.number)])
    assert (await ended(ledger), ledger.seen[-1].late) == ((TaskState.FAILED, "deadline"), 1)


async def test_deadline_is_over_all_attempts(ledger: Ledger) -> None:
    publication = await ledger.start_one(deadline="60s", retry=Retry(max_attempts=9, first="40s", cap="40s"))
    await ledger.batch(ledger.finished(publication, failed(retryable=True)))
    await ledger.pass_time(50)
    second = ledger.published[-1]
    await ledger.batch(ledger.finished(second, failed(retryable=True)))
    await ledger.pass_time(10)

    assert (second.task.attempt, second.task.limits.deadline_ms) == (2, 1_060_000)
    assert await ended(ledger) == (TaskState.FAILED, "deadline")


@pytest.mark.parametrize(("reason", "seconds"), [("expired", 10), ("timeout", 11), ("expired", 0)])
async def test_attempt_that_is_cut_short_at_the_deadline_ends_so(ledger: Ledger, reason: str, seconds: int) -> None:
    """Also where the agent's clock is ahead."""
    publication = await ledger.start_one(deadline="10s", retry=Retry(max_attempts=9))
    ledger.now_ms += seconds * 1_000
    failure = Failure(reason, "", "", retryable=reason == "timeout")
    outcome = Outcome(Status.FAILED, dumps(failure.as_json()), None, None, AGENT, failure=failure)
    await ledger.batch(ledger.finished(publication, outcome))

    assert await ended(ledger) == (TaskState.FAILED, "deadline")


async def test_redrive_begins_the_limits_anew(ledger: Ledger) -> None:
    await ledger.start_one(deadline="10s", start_within="5s")
    await ledger.pass_time(10)

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "one"})
    limits = ledger.published[-1].task.limits
    await ledger.batch(ledger.began(ledger.published[-1]))
    await ledger.pass_time(10)

    assert (limits.start_by_ms, limits.deadline_ms) == (1_015_000, 1_020_000)
    assert await ended(ledger) == (TaskState.FAILED, "deadline")


async def test_canceled_node_leaves_no_timer(ledger: Ledger) -> None:
    publication = await ledger.start_one(deadline="1h", start_within="10s", timeout="1m")
    await ledger.batch(ledger.began(publication))
    before = await waiting(ledger)

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})

    assert set(before) == {"deadline", "start", "timeout"}
    assert await ended(ledger) == (TaskState.CANCELED, "canceled")


# -- timeout --------------------------------------------------------------------------------------------------


async def test_attempt_whose_end_nobody_tells_is_tried_again_and_its_result_refused(ledger: Ledger) -> None:
    publication = await ledger.start_one(timeout="10s", retry=Retry(max_attempts=2, first="1s", cap="1s"))
    await ledger.batch(ledger.began(publication))
    await ledger.pass_time(60)
    early = (await ledger.node("one")).state
    await ledger.pass_time(10)
    told = ledger.seen[-1].cancels
    await ledger.pass_time(2)
    second = ledger.published[-1]

    await ledger.batch(ledger.finished(publication, completed("late")))
    late = ledger.seen[-1].late
    await ledger.batch(ledger.began(second))
    await ledger.pass_time(70)

    assert (early, second.task.attempt, late) == (TaskState.WORKING, 2, 1)
    assert told == [(PLACE, publication.number)]
    assert await ended(ledger) == (TaskState.FAILED, "timeout")


async def test_timeout_of_an_attempt_that_another_followed_does_nothing(ledger: Ledger) -> None:
    """Not to a suspect either, which waits for a process of its own before it runs."""
    publication = await ledger.start_one(timeout="10s")
    await ledger.batch(ledger.began(publication))
    await claim_of(ledger, publication, AgentId("other-2"))

    await ledger.pass_time(300)

    row = await ledger.node("one")
    assert (row.state, row.agent, row.attempt) == (TaskState.WORKING, "other-2", 1)


@pytest.mark.parametrize("slot_after", [0, 300])
async def test_attempt_that_was_claimed_has_its_time_from_its_start_on_once(ledger: Ledger, slot_after: int) -> None:
    publication = await ledger.start_one(timeout="10s", retry=Retry(max_attempts=1))
    await ledger.pass_time(30)
    claim = await claim_of(ledger, publication, AGENT)
    await ledger.pass_time(slot_after)
    await ledger.batch(ledger.began(publication, claim))
    await ledger.pass_time(60)
    late = (await ledger.node("one")).state
    await ledger.batch(ledger.began(publication, claim))
    await ledger.pass_time(11)

    assert (late, await ended(ledger)) == (TaskState.WORKING, (TaskState.FAILED, "timeout"))


async def test_every_attempt_runs_its_own_time(ledger: Ledger) -> None:
    publication = await ledger.start_one(timeout="10s", retry=Retry(max_attempts=2, first="1s", cap="1s"))
    await ledger.batch(ledger.began(publication))
    await ledger.pass_time(50)
    await ledger.end("one", failed(retryable=True))
    await ledger.pass_time(2)
    await ledger.batch(ledger.began(ledger.published[-1]))
    await ledger.pass_time(60)
    late = (await ledger.node("one")).state

    await ledger.pass_time(11)

    assert (late, await ended(ledger)) == (TaskState.WORKING, (TaskState.FAILED, "timeout"))


@pytest.mark.parametrize("how", ["failed", "lost"])
@pytest.mark.parametrize("then", ["canceled", "completed unasked"])
async def test_timer_of_an_attempt_does_not_outlive_it(ledger: Ledger, how: str, then: str) -> None:
    """What follows may end without a word that it began: its start was lost, or it is canceled before."""
    publication = await ledger.start_one(timeout="10s", retry=Retry(max_attempts=2, first="1s", cap="1s"))
    await ledger.batch(ledger.began(publication))
    if how == "failed":
        await ledger.batch(ledger.finished(publication, failed(retryable=True)))
    else:
        await ledger.batch(Lost(PLACE, publication.number, AGENT))

    if then == "canceled":
        await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    await ledger.pass_time(2)
    if then != "canceled":
        await ledger.batch(ledger.finished(ledger.published[-1], completed(1)))

    assert await ledger.rows(TIMERS, "w") == []


async def test_elements_of_a_map_have_the_limits_each(ledger: Ledger) -> None:
    flow = Workflow("many")
    flow.map("work", "input", From("item"), limit=3, name="many", deadline="10s")
    await ledger.start(flow, [1, 2])
    await ledger.complete("many[0]")

    await ledger.pass_time(10)

    states = {"many": TaskState.FAILED, "many[0]": TaskState.COMPLETED, "many[1]": TaskState.FAILED}
    assert await ledger.states() == states


@pytest.mark.parametrize("first", ["result", "timer"])
@pytest.mark.parametrize(
    ("kind", "limit", "reason"),
    [("start", "start_within", "start_timeout"), *((limit, limit, limit) for limit in ("timeout", "deadline"))],
)
async def test_of_result_and_timer_one_counts(ledger: Ledger, kind: str, limit: str, reason: str, first: str) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=1), **{limit: "10s"})
    if kind == "timeout":
        await ledger.batch(ledger.began(publication))
    timer = (await waiting(ledger))[kind]
    ledger.now_ms = timer.due_ms
    commands: list[Command] = [ledger.finished(publication, completed(1)), Due(timer)]

    await ledger.batch(*(commands if first == "result" else commands[::-1]), *commands)

    late = sum(effects.late for effects in ledger.seen)
    expected = (TaskState.COMPLETED, "", 0) if first == "result" else (TaskState.FAILED, reason, 2)
    assert (*(await ended(ledger)), late) == expected


@pytest.mark.parametrize("limit", ["start_within", "deadline"])
@pytest.mark.parametrize("doubt", ["", "this machine's clock is 3600 s ahead of the registry's", None])
async def test_what_ends_by_a_limit_says_by_whose_clock(ledger: Ledger, limit: str, doubt: str | None) -> None:
    ledger.doubt = doubt or ""
    publication = await ledger.start_one(**{limit: "10s"})
    if doubt is None:
        await ledger.batch(ledger.finished(publication, expired()))
    await ledger.pass_time(12)

    said = (await ledger.value("one", FAILURE))["message"]
    clock = f" by its dispatcher's clock; {doubt}" if doubt else " by its dispatcher's clock"
    assert said.endswith(f"{limit}: too late" if doubt is None else clock)
