"""A store that an earlier build wrote is worked on, and what a later build wrote stops nothing else and is kept."""

from __future__ import annotations

from coditect import Workflow
from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.states import WorkflowState
from dispatcher.ledger import outbox
from dispatcher.ledger.commands import Lost
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed
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


def release(version: int) -> Definition:
    """A workflow of one name, whose later versions undo in another way, and have a node more."""
    flow = Workflow("release")
    last = flow.task("build", {"version": version}, name="build", compensate=f"undo_of_{version}")
    for number in range(version):
        last = flow.task(f"step_of_{version}", last.result, name=f"step_{number}")
    return flow.definition()


async def test_running_workflow_keeps_the_definition_it_began_with_over_an_upgrade() -> None:
    async with MemoryDatabase() as database:
        before = await Ledger.open(database)
        await before.start(release(1), workflow="old")
        begun = before.published

        after = Ledger(database, before.lease, Policy(0), published=begun)  # the next build has nothing in memory
        await after.start(release(2), workflow="new")
        ran: dict[str, list[str]] = {"old": [], "new": []}

        def note(one: Publication) -> Outcome:
            ran[one.node_key.workflow].append(one.task.capability)
            return failed() if one.node_key.node == "step_0" else completed("built")

        await after.play(note)

    assert ran["old"] == ["build", "step_of_1", "undo_of_1"]
    assert ran["new"] == ["build", "step_of_2", "undo_of_2"]
