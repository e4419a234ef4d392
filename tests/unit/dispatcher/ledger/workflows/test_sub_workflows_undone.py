"""Children that undo what they did, when their parent is compensated or restored."""

from __future__ import annotations

import pytest

from coditect.errors import InputError
from coditect.wire.control import Verb
from coditect.workflow.states import TaskState, WorkflowState
from tests.unit.dispatcher.ledger.workflows.restored import restore
from tests.unit.dispatcher.lone_ledger import Ledger
from tests.unit.dispatcher.pressing import Player, children, shop


async def test_a_completed_child_undoes_its_own_nodes_when_the_parent_compensates(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player("book.sell")

    await ledger.play(player)

    (child,) = await children(ledger)
    assert player.ran[3:] == ["book.sell", "book.unbind", "book.unset", "order.refund"]
    assert [await ledger.state(one) for one in ("w", child)] == [WorkflowState.COMPENSATED] * 2
    assert (await ledger.node("book.compensate")).state is TaskState.COMPLETED


async def test_compensation_of_the_node_goes_before_that_of_the_child(ledger: Ledger) -> None:
    await ledger.start(shop(compensate="book.recall"))
    player = Player("book.sell")

    await ledger.play(player)

    (child,) = await children(ledger)
    assert player.ran[3:] == ["book.sell", "book.recall", "order.refund"]
    assert player.inputs["book.recall"] == b'{"input":{"title":"Alice"},"result":"bound is done"}'
    assert await ledger.state(child) is WorkflowState.COMPLETED


async def test_a_compensation_that_fails_in_the_child_is_resumed_by_the_parent(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player("book.sell", "book.unset")
    await ledger.play(player)
    (child,) = await children(ledger)
    stopped = [await ledger.state(one) for one in ("w", child)]
    player.fails.clear()

    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(player)

    assert stopped == [WorkflowState.COMPENSATION_FAILED] * 2
    assert player.ran[4:] == ["book.unbind", "book.unset", "book.unset", "order.refund"]
    assert [await ledger.state(one) for one in ("w", child)] == [WorkflowState.COMPENSATED] * 2


async def test_restore_cancels_the_child_that_runs_and_begins_another_when_its_node_runs_again(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()
    for _ in range(2):
        one = ledger.published.pop()
        await ledger.batch(ledger.finished(one, player(one)))
    ledger.published.clear()

    await restore(ledger, "order")
    await ledger.play(player)

    first, second = await children(ledger)
    assert sorted(player.ran[2:]) == ["book.bind", "book.sell", "book.set", "book.unset"]
    assert [await ledger.state(one) for one in (first, second)] == [WorkflowState.COMPENSATED, WorkflowState.COMPLETED]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_restore_has_a_completed_child_undo_its_nodes_before_another_begins(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()
    await ledger.play(player)

    await restore(ledger, "order")
    await ledger.play(player)

    first, second = await children(ledger)
    assert player.ran[4:] == ["book.unbind", "book.unset", "book.set", "book.bind", "book.sell"]
    assert [await ledger.state(one) for one in (first, second)] == [WorkflowState.COMPENSATED, WorkflowState.COMPLETED]
    assert await ledger.state() is WorkflowState.COMPLETED
    with pytest.raises(InputError, match="its parent went on"):
        await ledger.ask(Verb.RESTORE, {"workflow": second, "checkpoint": "typeset", "token": "any", "by": "ada"})


async def test_a_compensation_that_failed_in_the_child_is_redriven_by_its_node(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player("book.sell", "book.unset")
    await ledger.play(player)
    (child,) = await children(ledger)
    player.fails.clear()

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "book.compensate"})
    await ledger.play(player)

    assert player.ran[4:] == ["book.unbind", "book.unset", "book.unset", "order.refund"]
    assert [await ledger.state(one) for one in ("w", child)] == [WorkflowState.COMPENSATED] * 2
