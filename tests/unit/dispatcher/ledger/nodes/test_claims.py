"""Attempts: who may run a task, how its agents are lost or fail, and who decides about another attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos.simulated_store import SimulatedDatabase
from coditect import Agent, Retry, Workflow
from coditect.agent.quarantine import killed_its_process
from coditect.errors import InvalidTask
from coditect.model.ids import AgentId
from coditect.model.result import INTERRUPTED, NOT_BEGUN, Outcome, Status
from coditect.wire.control import Started, Verb
from coditect.wire.json import dumps, loads
from coditect.wire.workflow_tasks import Claim, Verdict
from coditect.workflow.rows import DeadRow
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import timers
from dispatcher.ledger.commands import AgentFate, Asked, Began, Claimed, Command, Due, Finished, Heard, Lost, unreported
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.keyspace import DEAD
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.attempts import ATTEMPT_TIMEOUT, DELIVERY_LOST, DIED, FREE_LOSSES, UNREADABLE
from dispatcher.ledger.nodes.inputs import FAILURE
from dispatcher.ledger.workflows import queries, remove
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, claim_of, completed, failed, one_map, tasks, wide
from tests.unit.dispatcher.planes import MortalFleet


async def test_claim_that_is_asked_twice_is_granted_alike_and_an_older_one_counts_no_more(ledger: Ledger) -> None:
    publication = await ledger.start_one()
    older = await claim_of(ledger, publication, "a-1")
    granted = await claim_of(ledger, publication, "b-2")
    await ledger.batch(Began(Started("w", "one", older.fence, publication.number, "a-1", older.attempt, 5)))
    again = await claim_of(ledger, publication, "b-2")
    await ledger.batch(ledger.finished(publication, completed("late")))

    assert (again, granted.attempt, granted.fence) == (granted, 1, 3)
    assert (await ledger.node("one")).agent == "b-2"
    assert ledger.seen[-1].late == 1


async def end(ledger: Ledger, publication: Publication, claim: Claim, outcome: Outcome) -> None:
    """The attempt that the claim granted ends."""
    told = ledger.finished(publication, replace(outcome, attempt=claim.attempt))
    await ledger.batch(replace(told, fence=claim.fence))


async def test_suspect_that_is_tried_again_is_published_as_one(ledger: Ledger) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=3, first="1s", cap="1s"))
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    await ledger.batch(AgentFate(publication.node_key, AgentId("a-1"), lives=False))
    await end(ledger, publication, claim, failed(retryable=True))
    await ledger.pass_time(10)

    again = ledger.published[-1].task

    assert (publication.task.errors, again.attempt, killed_its_process(again)) == ((), 3, True)


async def history(ledger: Ledger) -> list[tuple[int, str, str]]:
    """Return attempt, agent and reason of each attempt in the node's history."""
    return [(row.attempt, row.agent, row.reason) for row in await ledger.attempts("one")]


def fate(publication: Publication, agent: str, *, lives: bool, has_task: bool = False) -> AgentFate:
    return AgentFate(publication.node_key, AgentId(agent), lives, has_task)


async def test_agent_that_lost_its_delivery_costs_no_attempt(ledger: Ledger) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=2))

    claims = []
    for number in range(20):
        claims.append(await claim_of(ledger, publication, f"a-{number}"))
        await ledger.batch(fate(publication, f"a-{number - 1}", lives=True, has_task=True))

    assert [one.attempt for one in claims] == [1] * 20
    assert {one.verdict for one in claims} == {Verdict.RUN}
    assert len({one.fence for one in claims}) == 20
    assert {reason for _, _, reason in await history(ledger)} == {"delivery_lost"}
    assert (await ledger.node("one")).suspect, "the task itself may cost its agents their deliveries"


async def lost_by_a_living_agent(ledger: Ledger, publication: Publication, run: int) -> None:
    await claim_of(ledger, publication, f"a-{run}")
    await ledger.batch(Lost(publication.node_key, publication.number, f"a-{run}", DELIVERY_LOST))


async def broken_off_by_a_drain(ledger: Ledger, publication: Publication, run: int) -> None:
    claim = await claim_of(ledger, publication, f"a-{run}")
    stopped = replace(failed(retryable=True), failure=INTERRUPTED, attempt=claim.attempt, agent_id=None)
    report = replace(ledger.finished(publication, stopped), fence=claim.fence)
    await ledger.batch(report, report)


async def taken_by_turns(ledger: Ledger, publication: Publication, run: int) -> None:
    claim = await claim_of(ledger, publication, f"a-{run % 2}")
    if claim.verdict is Verdict.WAIT:
        await ledger.batch(fate(publication, f"a-{1 - run % 2}", lives=True))


async def taken_from_a_living_agent(ledger: Ledger, publication: Publication, run: int) -> None:
    await claim_of(ledger, publication, f"a-{run}")
    await ledger.batch(fate(publication, f"a-{run - 1}", lives=True))


LOSSES = [lost_by_a_living_agent, broken_off_by_a_drain, taken_by_turns, taken_from_a_living_agent]


@pytest.mark.parametrize("retry", [Retry(max_attempts=3), None], ids=["node's", "capability's"])
@pytest.mark.parametrize("lose", LOSSES)
async def test_losses_that_are_no_attempts_isolate_the_task_and_are_bounded(
    ledger: Ledger, lose: Callable[[Ledger, Publication, int], Awaitable[None]], retry: Retry | None
) -> None:
    await ledger.start_one(retry=retry)
    suspect = []
    for run in range(100):
        await lose(ledger, ledger.published[-1], run)
        row = await ledger.node("one")
        suspect.append(row.suspect)
        assert row.attempt == 1 or row.losses > FREE_LOSSES
        if row.state.terminal:
            break

    assert row.state is TaskState.DEAD
    assert row.attempt == 3
    assert suspect[:1] == [False]
    assert all(suspect[3:])
    assert FREE_LOSSES + 3 <= len(suspect) <= FREE_LOSSES + 5
    assert row.reason == "lost_too_often"


async def test_failure_that_an_agent_reports_begins_the_count_of_losses_again(ledger: Ledger) -> None:
    await ledger.start_one(retry=Retry(max_attempts=9, first="1s", cap="1s"))
    await broken_off_by_a_drain(ledger, ledger.published[-1], 1)
    (publication, again) = ledger.published
    assert (await ledger.node("one")).losses == 1
    assert (again.task.attempt, publication.number < again.number) == (1, True)

    claim = await claim_of(ledger, again, "b-2")
    await end(ledger, again, claim, failed(retryable=True))

    row = await ledger.node("one")
    assert (row.losses, row.attempt) == (0, 2)


async def test_late_report_of_an_agent_in_doubt_proves_that_it_did_not_die_of_the_task(ledger: Ledger) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=2))
    first = await claim_of(ledger, publication, "a-1")
    await claim_of(ledger, publication, "b-2")
    await end(ledger, publication, first, completed("late"))

    await ledger.batch(fate(publication, "a-1", lives=False))

    row = await ledger.node("one")
    assert (row.state, row.attempt, list(row.doubted)) == (TaskState.WORKING, 1, [])
    assert await history(ledger) == [(1, "a-1", "delivery_lost")]


async def test_agent_that_died_costs_an_attempt_once_its_death_is_known(ledger: Ledger) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=3))

    first = await claim_of(ledger, publication, "a-1")
    second = await claim_of(ledger, publication, "b-2")
    before = await history(ledger)
    await ledger.batch(fate(publication, "a-1", lives=False), fate(publication, "a-1", lives=False))
    third = await claim_of(ledger, publication, "c-3")

    claims = [(claim.attempt, claim.suspect) for claim in (first, second, third)]
    assert claims == [(1, False), (1, True), (2, True)]
    assert before == [(1, "a-1", "delivery_lost")]
    assert await history(ledger) == [(1, "a-1", "process_died"), (2, "b-2", "delivery_lost")]


async def test_task_whose_agents_may_all_have_died_waits_for_the_proof_and_then_is_dead(ledger: Ledger) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=3))
    for agent in ("a-1", "b-2", "c-3"):
        await claim_of(ledger, publication, agent)

    waits = [(await claim_of(ledger, publication, agent)).verdict for agent in ("d-4", "e-5")]
    await ledger.batch(*(fate(publication, agent, lives=False) for agent in ("a-1", "b-2", "c-3")))

    assert waits == [Verdict.WAIT] * 2
    row = await ledger.node("one")
    assert (row.state, row.reason, row.attempt) == (TaskState.DEAD, "process_died", 3)
    assert (await claim_of(ledger, publication, "d-4")).verdict is Verdict.STALE


@pytest.mark.parametrize("has_task", [True, False])
async def test_last_attempt_stays_with_its_living_agent_or_is_published_again(ledger: Ledger, has_task: bool) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=1))
    granted = await claim_of(ledger, publication, "a-1")

    wait = await claim_of(ledger, publication, "b-2")
    await ledger.batch(fate(publication, "a-1", lives=True, has_task=has_task))

    assert wait.verdict is Verdict.WAIT
    row = await ledger.node("one")
    assert (row.state, row.attempt) == (TaskState.WORKING if has_task else TaskState.PUBLISHED, 1)
    again = await claim_of(ledger, ledger.published[-1], "a-1" if has_task else "b-2")
    assert (again.verdict, again.attempt, again.fence > granted.fence) == (Verdict.RUN, 1, not has_task)


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_capability_s_own_policy_says_how_many_agents_may_die(ledger: Ledger, most: int) -> None:
    publication = await ledger.start_one()
    runs = 0
    while (await ledger.states())["one"] is not TaskState.DEAD:
        publication = ledger.published[-1]
        (claim,) = await ledger.batch(Claimed(publication.node_key, publication.number, f"a-{runs}", most))
        runs += claim.verdict is Verdict.RUN
        await ledger.batch(Lost(publication.node_key, publication.number, f"a-{runs - 1}"))

    assert runs == most
    assert (await ledger.node("one")).attempt == most


async def test_failure_of_an_attempt_does_not_hide_the_deaths_before(ledger: Ledger) -> None:
    """A task that lost agents is asked for, so that no more attempts begin than its policy has."""
    publication = await ledger.start_one(retry=Retry(max_attempts=2, first="1s", cap="1s"))
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    await end(ledger, publication, claim, failed(retryable=True))
    await ledger.pass_time(10)
    again = ledger.published[-1]

    assert again.task.published_at_ms is None
    assert (await claim_of(ledger, again, "c-3")).verdict is Verdict.WAIT
    await ledger.batch(fate(publication, "a-1", lives=False))
    assert (await claim_of(ledger, again, "c-3")).verdict is Verdict.STALE
    assert await ledger.states() == {"one": TaskState.DEAD}


async def test_fate_of_an_agent_whose_node_has_ended_is_in_the_history(ledger: Ledger) -> None:
    publication = await ledger.start_one()
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    await end(ledger, publication, claim, completed("done"))

    await ledger.batch(fate(publication, "a-1", lives=False))

    row = await ledger.node("one")
    assert (row.state, row.attempt) == (TaskState.COMPLETED, 1)
    assert await history(ledger) == [(1, "a-1", "process_died")]


async def test_agents_that_asked_one_after_the_other_while_nobody_answered_cost_no_attempt(ledger: Ledger) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=2))
    asked = [Claimed(publication.node_key, publication.number, agent) for agent in ("a-1", "b-2", "c-3")]

    claims = await ledger.batch(*asked)
    later = await ledger.batch(*asked[:2])

    assert [(one.attempt, one.suspect) for one in claims] == [(1, False)] * 3
    assert sorted({one.fence for one in claims}) == [one.fence for one in claims]
    assert [(one.attempt, one.suspect) for one in later] == [(1, True)] * 2, "the last one was told"


async def test_grant_that_is_given_back_costs_no_attempt(ledger: Ledger) -> None:
    publication = await ledger.start_one(retry=Retry(max_attempts=1))
    claim = await claim_of(ledger, publication, "a-1")

    await end(ledger, publication, claim, replace(failed(retryable=True), failure=NOT_BEGUN))

    again = ledger.published[-1].task
    assert (again.attempt, again.publication > publication.number, again.errors) == (1, True, ())
    assert (await claim_of(ledger, publication)).verdict is Verdict.STALE
    taken = await claim_of(ledger, ledger.published[-1], "b-2")
    assert (taken.verdict, taken.attempt, taken.suspect) == (Verdict.RUN, 1, False)


@pytest.mark.parametrize("lost", [False, True])
async def test_started_notice_makes_the_next_claim_of_its_publication_a_suspect_s(ledger: Ledger, lost: bool) -> None:
    publication = await ledger.start_one()
    if lost:
        await ledger.batch(Lost(publication.node_key, publication.number))
        assert (await claim_of(ledger, publication)).verdict is Verdict.STALE
    await ledger.batch(Began(Started("w", "one", 1, publication.number, AGENT, 1, 5)))
    claim = await claim_of(ledger, ledger.published[-1])

    assert (claim.verdict, claim.attempt, claim.fence, claim.suspect) == (Verdict.RUN, 1, 3 if lost else 2, not lost)


async def fail(ledger: Ledger, retry: Retry | None, retry_ms: int | None) -> TaskState:
    """How a node stands after its first attempt has failed."""
    await ledger.start_one(retry=retry)
    await ledger.end("one", replace(failed(retryable=True), retry_ms=retry_ms))
    return (await ledger.states())["one"]


async def test_capability_decides_where_the_node_says_nothing(ledger: Ledger) -> None:
    assert await fail(ledger, None, 700) is TaskState.RETRY_WAIT
    await ledger.pass_time(0.6)
    early = await ledger.states()
    await ledger.pass_time(0.2)

    assert early == {"one": TaskState.RETRY_WAIT}
    assert ledger.published[-1].task.attempt == 2
    assert ledger.published[-1].task.limits.max_attempts is None


@pytest.mark.parametrize(("retry", "retry_ms"), [(None, None), (Retry(max_attempts=1), 700)])
async def test_capability_or_node_tries_no_more(ledger: Ledger, retry: Retry | None, retry_ms: int | None) -> None:
    assert await fail(ledger, retry, retry_ms) is TaskState.FAILED


def unread(ledger: Ledger, publication: Publication, claim: Claim) -> Command:
    """The command for a result that the dispatcher cannot read."""
    outcome = unreported(UNREADABLE, InvalidTask("It is no JSON"))
    return Finished(publication.node_key, claim.fence, publication.number, outcome, reported=False)


def unrecorded(ledger: Ledger, publication: Publication, claim: Claim) -> Command:
    """The command for a result that the ledger cannot record."""
    report = replace(ledger.finished(publication, completed(1)), fence=claim.fence)
    return report.unrecorded(ValueError("It is no JSON"))


def silent(ledger: Ledger, publication: Publication, claim: Claim) -> Command:
    """The start of an attempt after which its agent reports nothing."""
    return ledger.began(publication, claim)


ENDS: list[tuple[Callable[[Ledger, Publication, Claim], Command], TaskState, str, str]] = [
    (unread, TaskState.FAILED, "unreadable_result", "It is no JSON"),
    (unrecorded, TaskState.DEAD, "unrecordable_result", "It is no JSON"),
    (silent, TaskState.FAILED, "timeout", ATTEMPT_TIMEOUT.message),
]


@pytest.mark.parametrize("own", [False, True], ids=["capability's", "node's"])
@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize(("end", "state", "reason", "message"), ENDS, ids=lambda one: getattr(one, "__name__", ""))
async def test_policy_bounds_the_attempts_whose_end_no_agent_reported(
    ledger: Ledger,
    end: Callable[[Ledger, Publication, Claim], Command],
    state: TaskState,
    reason: str,
    message: str,
    most: int,
    own: bool,
) -> None:
    await ledger.start_one(timeout="10s", retry=Retry(max_attempts=most) if own else None)
    ran = []
    for _ in range(5 * most):
        publication = ledger.published[-1]
        (claim,) = await ledger.batch(Claimed(publication.node_key, publication.number, AGENT, 9 if own else most))
        if claim.verdict is Verdict.RUN:
            ran.append(claim.attempt)
            await ledger.batch(end(ledger, publication, claim))
        await ledger.pass_time(200)

    row = await ledger.node("one")
    told = await ledger.value("one", FAILURE)
    assert ran == [*range(1, most + 1)]
    assert (row.state, row.reason, row.attempt) == (state, reason, most)
    assert told["message"] == message
    asked = [one.task.published_at_ms is None for one in ledger.published]
    assert asked == [False, *[not own] * (len(asked) - 1)], "of a later attempt only an agent may know if it may begin"


@pytest.mark.parametrize("asks", [False, True])
async def test_agent_asks_before_it_retries_only_after_an_unreported_attempt(ledger: Ledger, asks: bool) -> None:
    publication = await ledger.start_one()
    (claim,) = await ledger.batch(Claimed(publication.node_key, publication.number, AGENT, 9))
    outcome = replace(failed(retryable=True), retry_ms=700)
    reported = replace(ledger.finished(publication, outcome), fence=claim.fence)
    await ledger.batch(unread(ledger, publication, claim) if asks else reported)
    await ledger.pass_time(200)

    retry = ledger.published[-1].task
    assert (retry.attempt, retry.published_at_ms is None) == (2, asks)


@pytest.mark.parametrize("reason", ["handler_error", ATTEMPT_TIMEOUT.reason])
async def test_agent_that_does_not_bound_the_attempts_is_believed_about_each(ledger: Ledger, reason: str) -> None:
    assert await fail(ledger, None, 700) is TaskState.RETRY_WAIT
    for attempt in (2, 3, 4, 5):
        await ledger.pass_time(1)
        publication = ledger.published[-1]
        (claim,) = await ledger.batch(Claimed(publication.node_key, publication.number, AGENT))
        assert (claim.verdict, claim.attempt, claim.suspect) == (Verdict.RUN, attempt, False)
        failure = failed(retryable=True)
        assert failure.failure is not None
        outcome = replace(failure, failure=replace(failure.failure, reason=reason), retry_ms=700)
        await ledger.batch(replace(ledger.finished(publication, outcome), fence=claim.fence))


async def published(ledger: Ledger, *names: str, attempts: int = 1) -> list[Publication]:
    """Nodes that have so many attempts each, all of them published."""
    await ledger.start(wide(names, retry=Retry(max_attempts=attempts)))
    return sorted(ledger.published, key=lambda one: one.node_key)


@pytest.mark.parametrize("told", ["claimed", "began"])
async def test_publication_that_an_agent_took_while_it_was_looked_for_is_not_lost(ledger: Ledger, told: str) -> None:
    (publication,) = await published(ledger, "one")
    node_key, number = publication.node_key, publication.number
    taken = Claimed(node_key, number, AGENT) if told == "claimed" else ledger.began(publication)

    await ledger.batch(taken, Lost(node_key, number))

    row = await ledger.node("one")
    assert (row.state, row.attempt, row.publication, row.agent) == (TaskState.WORKING, 1, number, AGENT)
    assert ledger.published == [publication]


@pytest.mark.parametrize(
    ("agent", "state"), [(AGENT, TaskState.DEAD), ("another", TaskState.WORKING)], ids=["its agent", "another"]
)
async def test_agent_that_is_gone_costs_its_task_an_attempt(ledger: Ledger, agent: str, state: TaskState) -> None:
    (publication,) = await published(ledger, "one")
    await ledger.batch(Claimed(publication.node_key, publication.number, AGENT))

    await ledger.batch(Lost(publication.node_key, publication.number, agent))

    assert await ledger.states() == {"one": state}


async def test_next_publication_of_a_dead_agent_s_task_is_nobody_s_and_may_be_lost_itself(ledger: Ledger) -> None:
    (first,) = await published(ledger, "one", attempts=2)
    node_key = first.node_key
    await ledger.batch(Claimed(node_key, first.number, AGENT))
    await ledger.batch(Lost(node_key, first.number, AGENT))
    again = await ledger.node("one")

    await ledger.batch(Lost(node_key, again.publication))

    row = await ledger.node("one")
    assert (again.state, again.attempt, again.agent) == (TaskState.PUBLISHED, 2, "")
    assert (row.state, row.attempt, row.publication) == (TaskState.PUBLISHED, 2, again.publication + 1)


async def test_lost_publication_is_in_the_outbox_under_its_next_number(ledger: Ledger) -> None:
    first, second = await published(ledger, "one", "two")

    await ledger.batch(Claimed(second.node_key, second.number, AGENT))
    await ledger.batch(Lost(first.node_key, first.number), Lost(second.node_key, second.number))

    assert await ledger.unsent() == {ledger.published[-1].number: first.node_key}


async def test_what_is_lost_or_due_amid_a_cancel_stays_so(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "MAX_DEPENDENTS", 1)
    await ledger.start(wide(("a", "lost", "retried"), retry=Retry(max_attempts=3, first="1s", cap="1s")))
    before = sorted(ledger.published, key=lambda one: one.node_key)
    _, lost, retried = before
    await ledger.batch(ledger.finished(retried, failed(retryable=True)))
    ledger.now_ms += 10_000
    (timer,) = await ledger.database.read(lambda tr: timers.due(tr, 0, ledger.now_ms))

    await ledger.batch(Asked(Verb.CANCEL, {"workflow": "w"}), Due(timer), Lost(lost.node_key, lost.number))

    assert sorted(ledger.published, key=lambda one: one.node_key) == before
    assert set((await ledger.states()).values()) == {TaskState.CANCELED}
    assert await ledger.state() is WorkflowState.CANCELED
    assert sorted(ledger.cancels) == [(one.node_key, one.number) for one in before if one is not retried]


def died() -> Outcome:
    return Outcome(Status.FAILED, dumps(DIED.as_json()), None, None, AGENT, failure=DIED)


async def start(ledger: Ledger, workflow: str) -> None:
    await ledger.start(wide(("dies", "fails", "works"), retry=Retry(max_attempts=1)), workflow=workflow)
    outcomes = {"dies": died(), "fails": failed(), "works": completed(1)}
    await ledger.play(lambda one: outcomes[one.node_key.node])


async def page(ledger: Ledger, **asked: Any) -> tuple[list[tuple[str, str]], Any]:
    answer = loads(dumps(await ledger.read(queries.dead, **asked)))
    rows = [DeadRow.read(row) for row in answer["dead"]]
    assert all((row.node.state, row.node.reason) == (TaskState.DEAD, DIED.reason) for row in rows)
    return [(row.workflow, row.node.name) for row in rows], answer["next"]


async def test_dead_nodes_of_all_workflows_are_told_in_pages(ledger: Ledger) -> None:
    for workflow in "abc":
        await start(ledger, workflow)

    first, following = await page(ledger, limit=2)
    last, end = await page(ledger, limit=2, after=following)

    assert first == [("a", "dies"), ("b", "dies")]
    assert (last, end) == ([("c", "dies")], None)


async def test_dead_nodes_and_elements_that_run_again_are_none_until_they_die_again(ledger: Ledger) -> None:
    await start(ledger, "w")
    await ledger.start(one_map(), [1, 2], workflow="x")
    await ledger.play(lambda one: died() if one.node_key.node == "each[1]" else completed(1))
    pages = [await page(ledger)]
    for body in ({"workflow": "w", "node": "dies"}, {"workflow": "x", "node": "each"}):
        await ledger.ask(Verb.REDRIVE, body)
    pages.append(await page(ledger))
    await ledger.play(lambda _: died())
    pages.append(await page(ledger))
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.ask(Verb.REDRIVE, {"workflow": "x", "node": "each"})
    await ledger.play(lambda _: completed(1))

    dead = ([("w", "dies"), ("x", "each[1]")], None)
    assert [*pages, await page(ledger)] == [dead, ([], None), dead, ([], None)]


async def test_dead_node_goes_with_its_workflow(ledger: Ledger) -> None:
    await start(ledger, "w")
    before_ms = ledger.now_ms + 1

    assert await ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=before_ms))
    assert await page(ledger) == ([], None), "nobody sees it any more"
    while await ledger.database.run(lambda tr: remove.take_apart(tr, "w", before_ms=before_ms)):
        pass

    assert await ledger.rows(DEAD) == []


PLACE = NodeKey("w", "one")


@pytest.fixture
async def claimed() -> AsyncIterator[Ledger]:
    async with SimulatedDatabase() as database:
        claimed = await Ledger.open(database)
        await claimed.start_one(retry=Retry(max_attempts=2))
        await claimed.batch(Claimed(PLACE, 1, AGENT))
        yield claimed


async def told(claimed: Ledger, command: Command) -> list[tuple[NodeKey, int]]:
    await claimed.batch(command)
    return claimed.seen[-1].cancels


@pytest.mark.parametrize("start", [False, True], ids=["beat", "start"])
async def test_agent_that_reports_what_was_canceled_is_told_again_and_as_often(claimed: Ledger, start: bool) -> None:
    await claimed.ask(Verb.CANCEL, {"workflow": "w"})
    report = Began(Started(*PLACE, 2, 1, AGENT, 1, 5)) if start else Heard(PLACE, 2)

    assert [await told(claimed, report) for _ in range(2)] == [[(PLACE, 1)]] * 2


async def test_who_runs_an_older_publication_of_what_works_elsewhere_is_told(claimed: Ledger) -> None:
    await claimed.batch(Lost(PLACE, 1, AGENT), Claimed(PLACE, 2, "worker-2"))
    row = await claimed.node("one")

    assert (row.state, row.publication, row.fence) == (TaskState.WORKING, 2, 4)
    assert await told(claimed, Heard(PLACE, 2)) == [(PLACE, 1)]
    assert await told(claimed, Heard(PLACE, 4)) == []


@pytest.mark.parametrize("fence", [2, 3])
async def test_nobody_is_told_who_may_still_be_granted_it(claimed: Ledger, fence: int) -> None:
    assert await told(claimed, Heard(PLACE, 2)) == [], "it works"
    await claimed.batch(Lost(PLACE, 1, AGENT))

    assert await told(claimed, Heard(PLACE, fence)) == [], "it is published again, and not granted to anybody"
    assert await told(claimed, Heard(NodeKey("w", "unknown"), fence)) == []


async def test_agent_that_told_the_end_itself_is_told_nothing_and_one_that_was_given_up_is(claimed: Ledger) -> None:
    await claimed.batch(Lost(PLACE, 1, AGENT), Claimed(PLACE, 2, "worker-2"), Lost(PLACE, 2, "worker-2"))
    assert await claimed.states() == {"one": TaskState.DEAD}
    assert await told(claimed, Heard(PLACE, 4)) == [(PLACE, 2)]

    await claimed.start(tasks(one=""), workflow="v")
    await claimed.complete("one")
    assert await told(claimed, Heard(NodeKey("v", "one"), 1)) == []


async def test_canceled_node_ends_after_its_next_beat_though_its_dispatcher_died_before_it_told() -> None:
    ends: list[str] = []
    agent, flow = Agent("long"), Workflow("long")
    flow.task("long.work", name="only")

    @agent.capability("long.work", timeout="2h")
    async def work(_: None) -> None:
        try:
            await asyncio.sleep(7_000)
        except asyncio.CancelledError:
            ends.append("canceled")
            raise

    async with MortalFleet(agents=[agent]) as fleet:
        run = await fleet.client.start(flow)
        await fleet.advance("1m")

        fleet.die_at = "commit.after"
        asking = asyncio.ensure_future(run.cancel())
        await fleet.advance("1s")
        assert (fleet.die_at, ends) == ("", [])
        await fleet.restart("dispatcher")
        await fleet.advance("30s")

        await asking
        assert ends == ["canceled"]
        assert await run.wait(timeout="1m") is WorkflowState.CANCELED
        assert [row.state async for row in run.nodes()] == ["canceled"]
