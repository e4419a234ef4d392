"""A redrive or a resume that meets a damaged value leaves nothing half done, and what was left half done is freed."""

from __future__ import annotations

import pytest

from coditect import Workflow
from coditect.wire.control import Verb
from coditect.workflow.reference import From
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import AGAIN, RUNS, VALUES
from dispatcher.ledger.nodes.inputs import FAILURE, INPUT
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


async def failed_with_an_input(ledger: Ledger) -> None:
    flow = Workflow("two")
    first = flow.task("work", From("input"), name="a")
    flow.task("work", after=[first], name="b")
    await ledger.start(flow.definition(), 7)
    await ledger.play(lambda _: failed())


async def damage(ledger: Ledger, kind: str) -> bytes:
    """The value of the node `a`, as it was."""
    key = VALUES.pack(("w", "a", kind))
    was = await ledger.database.read(lambda tr: tr.get(key))
    assert was is not None
    await ledger.database.run(lambda tr: tr.set(key, was[:-1] + b"?\0"))
    return was


async def everything(ledger: Ledger) -> list[tuple[bytes, bytes]]:
    return await ledger.database.read(lambda tr: tr.get_range(b"", b"\xff"))


@pytest.mark.parametrize("verb", [Verb.REDRIVE, Verb.RESUME])
@pytest.mark.parametrize("kind", [FAILURE, INPUT])
async def test_nothing_begins_anew_by_halves_when_a_value_is_damaged(ledger: Ledger, kind: str, verb: Verb) -> None:
    asked = Asked(verb, {"workflow": "w", "node": "a"}, "i")
    await failed_with_an_input(ledger)
    was = await damage(ledger, kind)
    before = await everything(ledger)

    with pytest.raises(DamagedValue, match=kind):
        await ledger.batch(asked)
    refused = await everything(ledger)
    await ledger.database.run(lambda tr: tr.set(VALUES.pack(("w", "a", kind)), was))
    (told,) = await ledger.batch(asked)
    await ledger.play(lambda _: completed(1))

    assert refused == before
    assert told["again"] == ["a", "b"]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_workflow_that_was_left_half_way_is_canceled_and_its_nodes_begin_anew(ledger: Ledger) -> None:
    await failed_with_an_input(ledger)
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "a"})
    run = await ledger.run()
    run.again = True
    await ledger.database.run(lambda tr: tr.set(RUNS.pack(("w",)), run.pack()))
    await ledger.database.run(lambda tr: tr.set(AGAIN.pack(("w", 0, "a")), b""))

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    canceled = await ledger.state()
    left = await ledger.database.read(lambda tr: tr.get_range(*AGAIN.range()))
    ledger.published.clear()
    for node in ("a", "b"):
        await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": node})
        await ledger.play(lambda _: completed(1))

    assert canceled is WorkflowState.CANCELED
    assert left == []
    assert await ledger.state() is WorkflowState.COMPLETED
