"""Claims: what an agent is told when it asks whether it may run a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from coditect import Retry
from coditect.agent.quarantine import killed_its_process
from coditect.model.ids import AgentId
from coditect.model.result import INTERRUPTED, NOT_BEGUN
from coditect.wire.claims import Verdict
from coditect.wire.control import Started
from coditect.workflow.states import TaskState
from dispatcher.ledger.commands import AgentFate, Began, Claimed, Lost
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import ATTEMPTS
from dispatcher.ledger.nodes.attempts import DELIVERY_LOST, FREE_LOSSES
from dispatcher.ledger.rows import AttemptRecord
from tests.unit.dispatcher.ledger.test_batch import claim_of, one_node
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed


async def test_claim_that_is_asked_twice_is_granted_alike(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    granted = await claim_of(ledger, publication, "b-2")

    again = await claim_of(ledger, publication, "b-2")
    await ledger.batch(ledger.finished(publication, completed("late")))

    assert (again, granted.attempt, granted.fence) == (granted, 1, 3)
    assert ledger.seen[-1].late == 1


async def test_suspect_that_is_tried_again_is_published_as_one(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=3, first="1s", cap="1s")))
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    await ledger.batch(AgentFate(publication.node_key, AgentId("a-1"), lives=False))
    died = replace(failed(retryable=True), attempt=claim.attempt)
    await ledger.batch(replace(ledger.finished(publication, died), fence=claim.fence))
    await ledger.pass_time(10)

    again = ledger.published[-1].task

    assert (publication.task.errors, again.attempt, killed_its_process(again)) == ((), 3, True)


async def history(ledger: Ledger) -> list[tuple[int, str, str]]:
    """Return attempt, agent and reason of each attempt in the node's history."""
    found = await ledger.database.read(lambda tr: tr.get_range(*ATTEMPTS.range(("w", "one"))))
    rows = [AttemptRecord.unpack(value) for _, value in found]
    return [(row.attempt, row.agent, row.reason) for row in rows]


def fate(publication: Publication, agent: str, *, lives: bool, has_task: bool = False) -> AgentFate:
    return AgentFate(publication.node_key, AgentId(agent), lives, has_task)


async def test_agent_that_lost_its_delivery_costs_no_attempt(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=2)))
    (publication,) = ledger.published

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
    await ledger.start(one_node(retry=retry))
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
    await ledger.start(one_node(retry=Retry(max_attempts=9, first="1s", cap="1s")))
    await broken_off_by_a_drain(ledger, ledger.published[-1], 1)
    (publication, again) = ledger.published
    assert (await ledger.node("one")).losses == 1
    assert (again.task.attempt, publication.number < again.number) == (1, True)

    claim = await claim_of(ledger, again, "b-2")
    told = replace(failed(retryable=True), attempt=claim.attempt)
    await ledger.batch(replace(ledger.finished(again, told), fence=claim.fence))

    row = await ledger.node("one")
    assert (row.losses, row.attempt) == (0, 2)


async def test_late_report_of_an_agent_in_doubt_proves_that_it_did_not_die_of_the_task(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=2)))
    (publication,) = ledger.published
    first = await claim_of(ledger, publication, "a-1")
    await claim_of(ledger, publication, "b-2")
    await ledger.batch(replace(ledger.finished(publication, completed("late")), fence=first.fence))

    await ledger.batch(fate(publication, "a-1", lives=False))

    row = await ledger.node("one")
    assert (row.state, row.attempt, list(row.doubted)) == (TaskState.WORKING, 1, [])
    assert await history(ledger) == [(1, "a-1", "delivery_lost")]


async def test_agent_that_died_costs_an_attempt_once_its_death_is_known(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=3)))
    (publication,) = ledger.published

    first = await claim_of(ledger, publication, "a-1")
    second = await claim_of(ledger, publication, "b-2")
    before = await history(ledger)
    await ledger.batch(fate(publication, "a-1", lives=False), fate(publication, "a-1", lives=False))
    third = await claim_of(ledger, publication, "c-3")

    assert (first.attempt, first.suspect) == (1, False)
    assert (second.attempt, second.suspect) == (1, True)
    assert (third.attempt, third.suspect) == (2, True)
    assert before == [(1, "a-1", "delivery_lost")]
    assert await history(ledger) == [(1, "a-1", "process_died"), (2, "b-2", "delivery_lost")]


async def test_task_whose_agents_may_all_have_died_waits_for_the_proof_and_then_is_dead(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=3)))
    (publication,) = ledger.published
    for agent in ("a-1", "b-2", "c-3"):
        await claim_of(ledger, publication, agent)

    waits = [(await claim_of(ledger, publication, agent)).verdict for agent in ("d-4", "e-5")]
    await ledger.batch(*(fate(publication, agent, lives=False) for agent in ("a-1", "b-2", "c-3")))

    assert waits == [Verdict.WAIT] * 2
    row = await ledger.node("one")
    assert (row.state, row.reason, row.attempt) == (TaskState.DEAD, "process_died", 3)
    assert (await claim_of(ledger, publication, "d-4")).verdict is Verdict.STALE


@pytest.mark.parametrize("has_task", [True, False])
async def test_last_attempt_stays_with_its_living_agent_or_is_published_again_as_the_same(
    ledger: Ledger, has_task: bool
) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=1)))
    (publication,) = ledger.published
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
    await ledger.start(one_node())
    (publication,) = ledger.published
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
    await ledger.start(one_node(retry=Retry(max_attempts=2, first="1s", cap="1s")))
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    told = replace(failed(retryable=True), attempt=claim.attempt)
    await ledger.batch(replace(ledger.finished(publication, told), fence=claim.fence))
    await ledger.pass_time(10)
    again = ledger.published[-1]

    assert again.task.published_at_ms is None
    assert (await claim_of(ledger, again, "c-3")).verdict is Verdict.WAIT
    await ledger.batch(fate(publication, "a-1", lives=False))
    assert (await claim_of(ledger, again, "c-3")).verdict is Verdict.STALE
    assert await ledger.states() == {"one": TaskState.DEAD}


async def test_fate_of_an_agent_whose_node_has_ended_is_in_the_history(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    await ledger.batch(replace(ledger.finished(publication, completed("done")), fence=claim.fence))

    await ledger.batch(fate(publication, "a-1", lives=False))

    row = await ledger.node("one")
    assert (row.state, row.attempt) == (TaskState.COMPLETED, 1)
    assert await history(ledger) == [(1, "a-1", "process_died")]


async def test_agents_that_asked_one_after_the_other_while_nobody_answered_cost_no_attempt(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=2)))
    (publication,) = ledger.published
    asked = [Claimed(publication.node_key, publication.number, agent) for agent in ("a-1", "b-2", "c-3")]

    claims = await ledger.batch(*asked)
    later = await ledger.batch(*asked[:2])

    assert [(one.attempt, one.suspect) for one in claims] == [(1, False)] * 3
    assert sorted({one.fence for one in claims}) == [one.fence for one in claims]
    assert [(one.attempt, one.suspect) for one in later] == [(1, True)] * 2, "the last one was told"


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


async def test_started_notice_makes_the_next_claim_a_suspect_s(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await ledger.batch(Began(Started("w", "one", 1, publication.number, AGENT, 1, 5)))

    claim = await claim_of(ledger, publication)

    assert (claim.attempt, claim.fence, claim.suspect) == (1, 2, True)


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
