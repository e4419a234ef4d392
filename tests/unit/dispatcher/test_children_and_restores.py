"""Children of workflows that are restored, and children that are restored themselves."""

from __future__ import annotations

from coditect.workflow.states import WorkflowState
from dispatcher.ledger.effects import Publication
from tests.unit.dispatcher.ledger import Ledger
from tests.unit.dispatcher.pressing import Player, children, shop
from tests.unit.dispatcher.restored import plan, restore


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
