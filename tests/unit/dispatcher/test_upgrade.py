"""A store that an earlier build wrote is worked on, and what a later build wrote stops nothing else and is kept."""

from __future__ import annotations

from coditect.wire.control import Verb
from coditect.workflow.states import WorkflowState
from dispatcher.ledger import outbox
from dispatcher.ledger.commands import Lost
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.unit_of_work import Policy
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.ledger import Ledger, completed
from tests.unit.layers import store_of_version_1


async def test_a_store_of_the_build_before_versions_is_worked_to_its_end() -> None:
    async with MemoryDatabase() as database:
        await database.run(store_of_version_1.put)
        step = await database.run(lambda tr: shards.step(tr, "me", 2, count=1))
        ledger = Ledger(database, step.owned[0], Policy(0), now_ms=1_100_000)
        waiting = await database.read(lambda tr: outbox.waiting(tr, 0))

        await ledger.go_on()  # the rebuild that was begun
        await ledger.batch(*[Lost(NodeKey(one.workflow, one.node), one.publication) for one in waiting])
        await ledger.pass_time(60)  # the retry, and nobody told of what had a limit
        await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "gate", "granted": True, "by": "ada"})
        while ledger.published:
            await ledger.play(lambda _: completed("done"))
        ended = {one: await ledger.state(one) for one in "wrxyzc"}

    assert ended == {
        "w": WorkflowState.COMPLETED,
        "r": WorkflowState.COMPLETED,
        "x": WorkflowState.COMPLETED,
        "y": WorkflowState.FAILED,
        "z": WorkflowState.FAILED,
        "c": WorkflowState.CANCELED,
    }
