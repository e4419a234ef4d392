"""Children of workflows that are restored, and children that are restored themselves."""

from __future__ import annotations

import pytest

from coditect.errors import InputError, Retryable
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import Publication
from tests.unit.dispatcher.ledger.workflows.restored import is_over, plan, restore
from tests.unit.dispatcher.lone_ledger import Ledger
from tests.unit.dispatcher.pressing import Player, children, shop


def _press() -> Workflow:
    """A child whose last node runs while the test restores the child."""
    flow = Workflow("press")
    typeset = flow.task("book.set", {"title": flow.input["title"]}, name="typeset", compensate="book.unset")
    bound = flow.task("book.bind", typeset.result, name="bound", compensate="book.unbind")
    flow.task("book.dry", bound.result, name="dry")
    return flow


def _take(ledger: Ledger, capability: str) -> Publication:
    (found,) = [one for one in ledger.published if one.task.capability == capability]
    ledger.published.remove(found)
    return found


async def _execute(ledger: Ledger, player: Player, *capabilities: str) -> None:
    for capability in capabilities:
        one = _take(ledger, capability)
        await ledger.batch(ledger.finished(one, player(one)))


async def test_ends_of_a_discarded_and_of_the_present_child_in_one_transaction_both_count(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()
    await _execute(ledger, player, "order.take", "book.set")
    await restore(ledger, "order")
    ledger.published = [one for one in ledger.published if one.task.capability != "book.bind"]
    await _execute(ledger, player, "book.set")
    first, second = await children(ledger)
    last = [_take(ledger, "book.bind"), _take(ledger, "book.unset")]

    await ledger.batch(*[ledger.finished(one, player(one)) for one in last])
    await ledger.play(player)

    assert [await ledger.state(one) for one in (first, second)] == [WorkflowState.COMPENSATED, WorkflowState.COMPLETED]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_plan_names_the_children_that_a_restore_discards_and_tells_whether_they_are_undone(
    ledger: Ledger,
) -> None:
    await ledger.start(shop())
    await ledger.play(Player())

    told = (await plan(ledger, "order"))["nodes"]

    assert told == [
        {"node": "book", "state": "completed", "compensated": True},
        {"node": "sold", "state": "completed", "compensated": False},
    ]


async def _child_undoes_for_its_restore(ledger: Ledger, player: Player) -> str:
    await ledger.start(shop(_press()))
    await _execute(ledger, player, "order.take", "book.set", "book.bind")
    (child,) = await children(ledger)
    await restore(ledger, "typeset", workflow=child)
    ledger.published = [one for one in ledger.published if one.task.capability != "book.dry"]
    assert await ledger.state(child) is WorkflowState.COMPENSATING
    return child


async def test_cancel_reaches_a_workflow_that_undoes_for_its_restore_and_undoes_the_rest(ledger: Ledger) -> None:
    player = Player()
    child = await _child_undoes_for_its_restore(ledger, player)

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "too late"})
    await ledger.play(player)

    assert player.ran[3:] == ["book.unbind", "book.unset", "order.refund"]
    assert [await ledger.state(one) for one in (child, "w")] == [WorkflowState.COMPENSATED] * 2
    assert (await ledger.node("book")).state is TaskState.CANCELED
    assert (await ledger.run(child)).ended is WorkflowState.CANCELED
    await is_over(ledger)


async def test_child_whose_restore_failed_is_only_undone_once_its_parent_went_on(ledger: Ledger) -> None:
    player = Player("book.unbind")
    child = await _child_undoes_for_its_restore(ledger, player)
    await ledger.play(player)
    ended = [await ledger.state(one) for one in (child, "w")]
    player.fails.clear()

    await ledger.ask(Verb.RESUME, {"workflow": child})
    await ledger.play(player)

    assert ended == [WorkflowState.COMPENSATION_FAILED, WorkflowState.COMPENSATED]
    assert player.ran[3:] == ["book.unbind", "order.refund", "book.unbind", "book.unset"]
    assert await ledger.state(child) is WorkflowState.COMPENSATED
    with pytest.raises(InputError, match="compensated"):
        await restore(ledger, "typeset", workflow=child)


async def test_restore_waits_until_a_node_has_taken_the_end_of_its_child_and_then_undoes_the_child(
    ledger: Ledger,
) -> None:
    await ledger.start(shop())
    player = Player()
    await _execute(ledger, player, "order.take", "book.set")
    ledger.goes_on = False
    await _execute(ledger, player, "book.bind")
    ledger.goes_on = True

    with pytest.raises(Retryable, match="just ended"):
        await restore(ledger, "order")
    await ledger.go_on()
    ledger.published.clear()
    await restore(ledger, "order")
    await ledger.play(player)

    assert player.ran[3:] == ["book.unbind", "book.unset", "book.set", "book.bind", "book.sell"]
    assert await ledger.state() is WorkflowState.COMPLETED
