"""What begins anew: nodes, what comes after them, and maps; what of an earlier life is told, and what is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from coditect import Workflow
from coditect.model.control import Verb
from coditect.model.workflow.definition import Definition
from coditect.model.workflow.states import TaskState
from coditect.model.workflow.template import From
from dispatcher import queries
from dispatcher.layers.ledger.effects import Publication
from dispatcher.layers.ledger.scope import FAILURE, RESULT, value_of
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.ledger import Ledger, Place, completed, failed

REDRIVABLE = (TaskState.FAILED, TaskState.DEAD, TaskState.REJECTED, TaskState.CANCELED)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with MemoryDatabase() as database:
        yield await Ledger.open(database)


async def take(ledger: Ledger) -> dict[str, Publication]:
    """What was published since the last time, by node."""
    taken = {one.place.node: one for one in ledger.published}
    ledger.published.clear()
    return taken


async def redrive(ledger: Ledger, node: str, **more: Any) -> Any:
    return await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": node, **more})


def one_map(limit: int = 10) -> Definition:
    flow = Workflow("map")
    flow.map("work", "input", {"n": From("item")}, limit=limit, name="each")
    return flow.definition()


# -- values of an earlier life ------------------------------------------------------------------------------


async def told(ledger: Ledger, node: str) -> tuple[str, str, str]:
    nodes = await ledger.database.read(lambda tr: queries.nodes(tr, {"workflow": "w"}))
    return next((one["state"], one["reason"], one["message"]) for one in nodes["nodes"] if one["name"] == node)


async def test_failure_of_an_earlier_life_stands_in_its_attempt_alone(ledger: Ledger) -> None:
    flow = Workflow("two")
    flow.task("work", name="a")
    flow.task("work", name="b")
    await ledger.start(flow.definition())
    await ledger.play(lambda _: failed())
    before = await told(ledger, "a")

    await redrive(ledger, "a")
    await ledger.play(lambda _: completed(1))
    await redrive(ledger, "b")
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    attempts = await ledger.database.read(lambda tr: queries.attempts(tr, {"workflow": "w", "node": "a"}))

    assert before == ("failed", "handler_error", "no")
    assert await told(ledger, "a") == ("completed", "", "")
    assert await told(ledger, "b") == ("canceled", "canceled", "")
    assert [(one["status"], one["message"]) for one in attempts["attempts"]] == [("failed", "no"), ("completed", "")]


async def test_failure_of_an_element_s_earlier_life_stands_in_its_attempt_alone(ledger: Ledger) -> None:
    await ledger.start(one_map(), [1])
    await ledger.play(lambda _: failed())

    await redrive(ledger, "each")
    await ledger.play(lambda _: completed(1))
    attempts = await ledger.database.read(lambda tr: queries.attempts(tr, {"workflow": "w", "node": "each[0]"}))

    assert await told(ledger, "each[0]") == ("completed", "", "")
    assert [(one["status"], one["message"]) for one in attempts["attempts"]] == [("failed", "no"), ("completed", "")]
    assert await ledger.database.read(lambda tr: value_of(tr, Place("w", "each[0]"), FAILURE)) is None


async def test_approval_that_times_out_has_a_value_of_its_own(ledger: Ledger) -> None:
    flow = Workflow("gate")
    gate = flow.approval("ship it?", timeout="1h", on_timeout="grant", name="gate")
    flow.task("ship", after=[gate], when="results.gate.granted", name="ship")
    await ledger.start(flow.definition())
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "gate", "granted": False, "by": "ada"})
    await redrive(ledger, "gate")
    asked = await ledger.database.read(lambda tr: value_of(tr, Place("w", "gate"), RESULT))

    await ledger.pass_time(3_601)
    await ledger.play(lambda _: completed(1))

    assert asked is None
    answer = await ledger.database.read(lambda tr: value_of(tr, Place("w", "gate"), RESULT))
    assert answer == {"granted": True, "by": "timeout", "comment": ""}
    assert (await ledger.node("ship")).state is TaskState.COMPLETED
