"""Who decides about another attempt: the node's own policy, or else the capability's, by its agent's word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from coditect import Retry, Workflow
from coditect.errors import InvalidTask
from coditect.wire.claims import Claim, Verdict
from coditect.wire.control import Started
from coditect.workflow.states import TaskState
from dispatcher.ledger.commands import Began, Claimed, Command, Finished, unreported
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.nodes.attempts import TIMEOUT, UNREADABLE
from dispatcher.ledger.nodes.inputs import FAILURE, value_of
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed


async def fail(ledger: Ledger, retry: Retry | None, retry_ms: int | None) -> TaskState:
    """How a node stands after its first attempt has failed."""
    flow = Workflow("one")
    flow.task("work", name="one", **({} if retry is None else {"retry": retry}))  # type: ignore[arg-type]
    await ledger.start(flow.definition())
    (publication,) = ledger.published
    outcome = replace(failed(retryable=True), retry_ms=retry_ms)
    await ledger.batch(ledger.finished(publication, outcome))
    return (await ledger.states())["one"]


async def test_capability_decides_where_the_node_says_nothing(ledger: Ledger) -> None:
    assert await fail(ledger, None, 700) is TaskState.RETRY_WAIT

    await ledger.pass_time(0.6)
    early = await ledger.states()
    await ledger.pass_time(0.2)

    assert early == {"one": TaskState.RETRY_WAIT}
    assert ledger.published[-1].task.attempt == 2
    assert ledger.published[-1].task.limits.max_attempts is None


async def test_capability_that_tries_no_more_ends_the_node(ledger: Ledger) -> None:
    assert await fail(ledger, None, None) is TaskState.FAILED


async def test_node_s_own_policy_goes_before_the_capability_s(ledger: Ledger) -> None:
    assert await fail(ledger, Retry(max_attempts=1), 700) is TaskState.FAILED


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
    return Began(Started("w", "one", claim.fence, publication.number, AGENT, claim.attempt, ledger.now_ms))


ENDS: list[tuple[Callable[[Ledger, Publication, Claim], Command], TaskState, str, str]] = [
    (unread, TaskState.FAILED, "unreadable_result", "It is no JSON"),
    (unrecorded, TaskState.DEAD, "unrecordable_result", "It is no JSON"),
    (silent, TaskState.FAILED, "timeout", TIMEOUT.message),
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
    flow = Workflow("one")
    flow.task("work", name="one", timeout="10s", **({"retry": Retry(max_attempts=most)} if own else {}))  # type: ignore[arg-type]
    await ledger.start(flow.definition())
    ran = []
    for _ in range(5 * most):
        publication = ledger.published[-1]
        (claim,) = await ledger.batch(Claimed(publication.node_key, publication.number, AGENT, 9 if own else most))
        if claim.verdict is Verdict.RUN:
            ran.append(claim.attempt)
            await ledger.batch(end(ledger, publication, claim))
        await ledger.pass_time(200)

    row = await ledger.node("one")
    told = await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "one"), FAILURE))
    assert ran == [*range(1, most + 1)]
    assert (row.state, row.reason, row.attempt) == (state, reason, most)
    assert told["message"] == message
    asked = [one.task.published_at_ms is None for one in ledger.published]
    assert asked == [False, *[not own] * (len(asked) - 1)], "of a later attempt only an agent may know if it may begin"


@pytest.mark.parametrize("reason", ["handler_error", TIMEOUT.reason])
async def test_agent_that_does_not_say_how_many_attempts_it_permits_is_believed_about_the_next_one(
    ledger: Ledger, reason: str
) -> None:
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
