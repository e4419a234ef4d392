"""What is lost is published again, and nothing is that somebody has, or that nobody wants any more."""

from __future__ import annotations

import pytest

from coditect import Retry, Workflow
from coditect.wire.control import Started, Verb
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.commands import Asked, Began, Claimed, Due, Lost
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.nodes import advance
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, failed


async def published(ledger: Ledger, *names: str, attempts: int = 1) -> list[Publication]:
    """Nodes that have so many attempts each, all of them published."""
    flow = Workflow("wide")
    for name in names:
        flow.task("work", name=name, retry=Retry(max_attempts=attempts))
    await ledger.start(flow.definition())
    return sorted(ledger.published, key=lambda one: one.node_key)


@pytest.mark.parametrize("told", ["claimed", "began"])
async def test_publication_that_an_agent_took_while_it_was_looked_for_is_not_lost(ledger: Ledger, told: str) -> None:
    (publication,) = await published(ledger, "one")
    node_key, number = publication.node_key, publication.number
    started = Began(Started(node_key.workflow, node_key.node, 1, number, AGENT, 1, 5))
    taken = Claimed(node_key, number, AGENT) if told == "claimed" else started

    await ledger.batch(taken, Lost(node_key, number))

    row = await ledger.node("one")
    assert (row.state, row.attempt, row.publication, row.agent) == (TaskState.WORKING, 1, number, AGENT)
    assert ledger.published == [publication]


@pytest.mark.parametrize(
    ("agent", "state"), [(AGENT, TaskState.DEAD), ("another", TaskState.WORKING)], ids=["its agent", "another"]
)
async def test_agent_that_is_gone_costs_an_attempt_if_it_is_the_one(
    ledger: Ledger, agent: str, state: TaskState
) -> None:
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


async def test_lost_publication_leaves_no_row_behind(ledger: Ledger) -> None:
    first, second = await published(ledger, "one", "two")

    await ledger.batch(Claimed(second.node_key, second.number, AGENT))
    await ledger.batch(Lost(first.node_key, first.number), Lost(second.node_key, second.number))

    rows = await ledger.database.read(lambda tr: outbox.waiting(tr, 0))
    assert [(row.node, row.publication) for row in rows] == [("one", ledger.published[-1].number)]


async def test_what_is_lost_or_due_while_its_workflow_is_being_canceled_is_not_published(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advance, "MOST_STEPS", 1)
    flow = Workflow("wide")
    for name in ("a", "lost", "retried"):
        flow.task("work", name=name, retry=Retry(max_attempts=3, first="1s", cap="1s"))
    await ledger.start(flow.definition())
    before = sorted(ledger.published, key=lambda one: one.node_key)
    _, lost, retried = before
    await ledger.batch(ledger.finished(retried, failed(retryable=True)))
    ledger.now_ms += 10_000
    (timer,) = await ledger.database.read(lambda tr: timers.due(tr, 0, ledger.now_ms))

    await ledger.batch(Asked(Verb.CANCEL, {"workflow": "w"}), Due(timer), Lost(lost.node_key, lost.number))

    assert sorted(ledger.published, key=lambda one: one.node_key) == before
    assert set((await ledger.states()).values()) == {TaskState.CANCELED}
    assert await ledger.state() is WorkflowState.CANCELED
    told = [one for effects in ledger.seen for one in effects.cancels]
    assert sorted(told) == [(one.node_key, one.number) for one in before if one is not retried]
