"""Who decides about another attempt: the node's own policy, or else the capability's, by its agent's word."""

from __future__ import annotations

from dataclasses import replace

from coditect import Retry, Workflow
from coditect.workflow.states import TaskState
from tests.unit.dispatcher.lone_ledger import Ledger, failed


async def fail(ledger: Ledger, retry: Retry | None, retry_ms: int | None, *, by_agent: bool = True) -> TaskState:
    """How a node stands after its first attempt has failed."""
    flow = Workflow("one")
    flow.task("work", name="one", **({} if retry is None else {"retry": retry}))  # type: ignore[arg-type]
    await ledger.start(flow.definition())
    (publication,) = ledger.published
    outcome = replace(failed(retryable=True), retry_ms=retry_ms)
    if not by_agent:
        outcome = replace(outcome, agent_id=None)
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


async def test_what_no_agent_told_goes_by_the_default(ledger: Ledger) -> None:
    assert await fail(ledger, None, None, by_agent=False) is TaskState.RETRY_WAIT
