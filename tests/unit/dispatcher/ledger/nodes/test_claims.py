"""Claims: what an agent is told when it asks whether it may run a task."""

from __future__ import annotations

from dataclasses import replace

from coditect import Retry
from coditect.agent.quarantine import killed_its_process
from coditect.model.result import NOT_BEGUN
from coditect.wire.claims import Verdict
from coditect.wire.control import Started
from coditect.workflow.states import TaskState
from dispatcher.ledger.commands import Began, Claimed, Lost
from tests.unit.dispatcher.ledger.test_batch import claim_of, one_node
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed


async def test_claim_that_is_asked_twice_is_granted_alike(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    granted = await claim_of(ledger, publication, "b-2")

    again = await claim_of(ledger, publication, "b-2")
    await ledger.batch(ledger.finished(publication, completed("late")))

    assert (again, granted.attempt, granted.fence) == (granted, 2, 3)
    assert ledger.seen[-1].late == 1


async def test_suspect_that_is_tried_again_is_published_as_one(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=3, first="1s", cap="1s")))
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    died = replace(failed(retryable=True), attempt=claim.attempt)
    await ledger.batch(replace(ledger.finished(publication, died), fence=claim.fence))
    await ledger.pass_time(10)

    again = ledger.published[-1].task

    assert (publication.task.errors, again.attempt, killed_its_process(again)) == ((), 3, True)


async def test_agent_that_died_costs_an_attempt_only_when_it_had_started(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=2)))
    (publication,) = ledger.published

    first = await claim_of(ledger, publication, "a-1")
    second = await claim_of(ledger, publication, "b-2")
    third = await claim_of(ledger, publication, "c-3")

    assert (first.attempt, first.suspect) == (1, False)
    assert (second.attempt, second.suspect) == (2, True)
    assert third.verdict is Verdict.STALE
    assert await ledger.states() == {"one": TaskState.DEAD}


async def test_agents_that_asked_one_after_the_other_while_nobody_answered_cost_no_attempt(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=2)))
    (publication,) = ledger.published
    asked = [Claimed(publication.node_key, publication.number, agent) for agent in ("a-1", "b-2", "c-3")]

    claims = await ledger.batch(*asked)
    later = await ledger.batch(*asked[:2])

    assert [(one.attempt, one.suspect) for one in claims] == [(1, False)] * 3
    assert sorted({one.fence for one in claims}) == [one.fence for one in claims]
    assert [(one.attempt, one.suspect) for one in later] == [(2, True)] * 2, "the last one was told"


async def test_grant_that_is_given_back_costs_no_attempt(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=1)))
    (publication,) = ledger.published
    claim = await claim_of(ledger, publication, "a-1")
    given_back = replace(failed(retryable=True), failure=NOT_BEGUN)

    await ledger.batch(replace(ledger.finished(publication, given_back), fence=claim.fence))

    again = ledger.published[-1].task
    assert (again.attempt, again.publication > publication.number, again.errors) == (1, True, ())
    assert (await claim_of(ledger, publication)).verdict is Verdict.STALE
    taken = await claim_of(ledger, ledger.published[-1], "b-2")
    assert (taken.verdict, taken.attempt, taken.suspect) == (Verdict.RUN, 1, False)


async def test_started_notice_makes_the_next_claim_another_attempt(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await ledger.batch(Began(Started("w", "one", 1, publication.number, AGENT, 1, 5)))

    claim = await claim_of(ledger, publication)

    assert (claim.attempt, claim.fence, claim.suspect) == (2, 2, True)


async def test_late_start_of_an_older_attempt_is_not_the_newer_ones(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    older = await claim_of(ledger, publication, "a-1")
    newer = await claim_of(ledger, publication, "b-2")

    await ledger.batch(Began(Started("w", "one", older.fence, publication.number, "a-1", older.attempt, 5)))

    assert (await ledger.node("one")).agent == "b-2"
    assert await claim_of(ledger, publication, "b-2") == newer


async def test_late_start_of_an_older_publication_does_not_begin_the_newer_one(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await ledger.batch(Lost(publication.node_key, publication.number))

    await ledger.batch(Began(Started("w", "one", 1, publication.number, AGENT, 1, 5)))

    claim = await claim_of(ledger, ledger.published[-1])
    assert (claim.verdict, claim.attempt, claim.suspect) == (Verdict.RUN, 1, False)


async def test_older_publication_is_stale(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await ledger.batch(Lost(publication.node_key, publication.number))

    assert (await claim_of(ledger, publication)).verdict is Verdict.STALE
    assert (await claim_of(ledger, ledger.published[-1])).verdict is Verdict.RUN
