"""Work that is left over for later transactions: however often it is begun, the workflow ends when it is done."""

from __future__ import annotations

from coditect import Workflow
from coditect.model.workflow.states import WorkflowState
from dispatcher.commands import GoOn, Show
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.ledger import Ledger, completed

NODES = 1_200


async def test_workflow_that_is_shown_again_while_it_is_shown_ends_all_the_same() -> None:
    flow = Workflow("wide")
    for number in range(NODES):
        flow.task("work", name=f"n{number}")
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition())
        ledger.published.sort(key=lambda publication: publication.number)

        await ledger.turn(Show("w"), Show("w"))
        await ledger.turn(Show("w"), GoOn())
        await ledger.play(lambda _: completed(1))

        assert (await ledger.run()).todo == 0
        assert await ledger.state() is WorkflowState.COMPLETED
