"""Work that is left over for later transactions: however often it is begun, the workflow ends when it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coditect import Workflow
from coditect.errors import Retryable
from coditect.model.control import Verb
from coditect.model.result import Outcome
from coditect.model.workflow.states import TaskState, WorkflowState
from dispatcher.commands import Asked, GoOn, Show
from dispatcher.layers.ledger.effects import Publication
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.ledger import Ledger, completed, failed

NODES = 1_200


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with MemoryDatabase() as database:
        yield await Ledger.open(database)


async def test_workflow_that_is_shown_again_while_it_is_shown_ends_all_the_same(ledger: Ledger) -> None:
    flow = Workflow("wide")
    for number in range(NODES):
        flow.task("work", name=f"n{number}")
    await ledger.start(flow.definition())
    ledger.published.sort(key=lambda publication: publication.number)

    await ledger.turn(Show("w"), Show("w"))
    await ledger.turn(Show("w"), GoOn())
    await ledger.play(lambda _: completed(1))

    assert (await ledger.run()).todo == 0
    assert await ledger.state() is WorkflowState.COMPLETED


def fan_behind_one() -> Workflow:
    flow = Workflow("fan")
    first = flow.task("work", name="first")
    wide = [flow.task("work", name=f"n{number:04}", after=[first]) for number in range(NODES)]
    flow.task("sum", name="sum", after=wide)
    return flow


async def test_redrive_waits_for_what_is_left_over_of_the_node_s_end(ledger: Ledger) -> None:
    redrive = Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"})
    await ledger.start(fan_behind_one().definition())
    (first,) = ledger.published
    ledger.published.clear()

    # the end and the redrive in one transaction: nothing of the rest is done between them
    _, refused, dry = await ledger.turn(
        ledger.finished(first, failed()), redrive, Asked(Verb.REDRIVE, {**redrive.body, "dry_run": True})
    )
    (told,) = await ledger.turn(redrive)

    def act(publication: Publication) -> Outcome:
        return completed(publication.place.node)

    await ledger.play(act)

    assert isinstance(refused, Retryable)
    assert isinstance(dry, Retryable)
    assert refused.facts["fix"] == "try again in a moment"
    assert len(told["again"]) == NODES + 2
    assert set((await ledger.states()).values()) == {TaskState.COMPLETED}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_redrive_waits_for_the_end_of_a_cancel(ledger: Ledger) -> None:
    redrive = Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"})
    await ledger.start(fan_behind_one().definition())

    _, refused = await ledger.turn(Asked(Verb.CANCEL, {"workflow": "w"}), redrive)

    assert isinstance(refused, Retryable)
    assert await ledger.state() is WorkflowState.CANCELED
    assert set((await ledger.states()).values()) == {TaskState.CANCELED}


async def test_redrive_of_another_node_does_not_wait(ledger: Ledger) -> None:
    flow = fan_behind_one()
    flow.task("work", name="alone")
    await ledger.start(flow.definition())
    by_name = {one.place.node: one for one in ledger.published}
    await ledger.turn(ledger.finished(by_name["alone"], failed()))

    _, told = await ledger.turn(
        ledger.finished(by_name["first"], failed()), Asked(Verb.REDRIVE, {"workflow": "w", "node": "alone"})
    )

    assert told["again"] == ["alone"]
