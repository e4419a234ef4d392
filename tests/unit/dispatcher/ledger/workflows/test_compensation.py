"""The compensation of workflows that did not complete: what is undone, in which order, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from coditect import Workflow
from coditect.errors import InputError
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.keyspace import COMPENSATE
from dispatcher.ledger.workflows import queries
from tests.unit.dispatcher.ledger.workflows.restored import Played
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


def chain() -> Definition:
    flow = Workflow("trip")
    hotel = flow.task("hotel.book", {"nights": 2}, name="hotel", compensate="hotel.cancel")
    plain = flow.task("note.write", name="note", after=[hotel])
    flight = flow.task("flight.book", {"room": From("results.hotel")}, name="flight", after=[hotel], compensate="undo")
    flow.task("card.charge", name="card", after=[plain, flight], compensate="card.refund")
    return flow.definition()


fails = partial(Played, tells=" is done")


async def test_completed_nodes_are_undone_in_reverse_order_when_a_node_fails(ledger: Ledger) -> None:
    await ledger.start(chain())
    played = fails("card")

    await ledger.play(played)

    assert played.order[-2:] == ["flight.compensate", "hotel.compensate"]
    assert await ledger.state() is WorkflowState.COMPENSATED
    assert (await ledger.run()).ended is WorkflowState.FAILED
    assert played.inputs["hotel.compensate"] == {"input": {"nights": 2}, "result": "hotel is done"}
    assert played.inputs["flight.compensate"] == {"input": {"room": "hotel is done"}, "result": "flight is done"}
    assert "card.compensate" not in await ledger.states()
    assert await ledger.database.read(lambda tr: tr.get_range(*COMPENSATE.range(("w",)))) == []


async def test_result_of_a_compensated_workflow_is_the_failure_that_ended_it(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(fails("card"))

    told = await ledger.database.read(lambda tr: queries.result(tr, {"workflow": "w"}))

    assert (told["state"], told["failure"]["node"]) == ("failed", "card")


async def test_workflow_that_completes_undoes_nothing(ledger: Ledger) -> None:
    await ledger.start(chain())
    played = fails()

    await ledger.play(played)

    assert await ledger.state() is WorkflowState.COMPLETED
    assert len(played.order) == 4


async def test_next_compensation_begins_when_the_one_before_has_completed(ledger: Ledger) -> None:
    await ledger.start(chain())
    while "card" not in [one.node_key.node for one in ledger.published]:
        await ledger.batch(ledger.finished(ledger.published.pop(0), completed()))
    await ledger.batch(ledger.finished(ledger.published.pop(), failed()))

    under_way = [one.node_key.node for one in ledger.published]

    assert under_way == ["flight.compensate"]
    assert await ledger.state() is WorkflowState.COMPENSATING


async def test_failed_compensation_ends_the_workflow_and_a_redrive_goes_on_with_the_rest(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(fails("card", "flight.compensate"))
    before, played = await ledger.state(), fails()

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "flight.compensate"})
    await ledger.play(played)

    assert before is WorkflowState.COMPENSATION_FAILED
    assert played.order == ["flight.compensate", "hotel.compensate"]
    assert await ledger.state() is WorkflowState.COMPENSATED


async def test_resume_after_a_failed_compensation_runs_only_compensations(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(fails("card", "flight.compensate"))
    played = fails()

    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(played)

    assert played.order == ["flight.compensate", "hotel.compensate"]
    assert await ledger.state() is WorkflowState.COMPENSATED


@pytest.mark.parametrize("verb", [Verb.REDRIVE, Verb.RESUME])
async def test_failed_node_of_a_compensated_workflow_does_not_run_again(ledger: Ledger, verb: Verb) -> None:
    await ledger.start(chain())
    await ledger.play(fails("card"))

    with pytest.raises(InputError, match="compensated"):
        await ledger.ask(verb, {"workflow": "w", "node": "card"})


async def test_failed_attempt_of_a_compensation_is_followed_by_another(ledger: Ledger) -> None:
    await ledger.start(chain())
    while "flight.compensate" not in [one.node_key.node for one in ledger.published]:
        one = ledger.published.pop(0)
        await ledger.batch(ledger.finished(one, failed() if one.node_key.node == "card" else completed()))
    first = ledger.published.pop()

    await ledger.batch(ledger.finished(first, replace(failed(retryable=True), retry_ms=700)))
    await ledger.pass_time(60)
    again = ledger.published.pop()

    assert first.node_key == again.node_key
    assert again.task.attempt == 2
    assert again.task.owner is not None and first.task.owner is not None
    assert again.task.owner.fence > first.task.owner.fence


async def test_cancel_compensates_what_has_completed(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    ledger.published.clear()
    played = fails()

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "rain"})
    await ledger.play(played)

    assert played.order == ["hotel.compensate"]
    run = await ledger.run()
    assert (run.state, run.ended, run.reason) == (WorkflowState.COMPENSATED, WorkflowState.CANCELED, "rain")


async def test_cancel_without_compensation_leaves_what_has_completed(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "compensate": False})

    assert await ledger.state() is WorkflowState.CANCELED
    assert "hotel.compensate" not in await ledger.states()


async def test_only_a_cancel_without_compensation_ends_a_compensation_under_way(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    goes_on = await ledger.state()
    await ledger.ask(Verb.CANCEL, {"workflow": "w", "compensate": False})

    assert goes_on is WorkflowState.COMPENSATING
    assert await ledger.state() is WorkflowState.COMPENSATION_FAILED
    assert (await ledger.node("hotel.compensate")).state is TaskState.CANCELED


async def test_completed_elements_of_a_map_are_compensated_one_by_one(ledger: Ledger) -> None:
    flow = Workflow("rooms")
    flow.map("room.book", "input", From("item"), limit=9, name="rooms", compensate="room.cancel")
    await ledger.start(flow.definition(), [7, 8, 9])
    played = fails("rooms[1]")

    await ledger.play(played, pick=lambda _: 0)

    assert played.order == ["rooms[0]", "rooms[1]", "rooms[2]", "rooms[2].compensate", "rooms[0].compensate"]
    assert played.inputs["rooms[2].compensate"] == {"input": 9, "result": "rooms[2] is done"}


async def test_row_of_a_run_without_compensations_is_as_before(ledger: Ledger) -> None:
    flow = Workflow("plain")
    flow.task("work", name="a")
    await ledger.start(flow.definition())

    assert (await ledger.run()).pack().startswith(b'["running"')


async def test_row_of_a_node_names_the_capability_that_it_calls_and_no_question(ledger: Ledger) -> None:
    flow = Workflow("asked")
    first = flow.task("room.book", name="first", compensate="room.cancel")
    flow.approval("Go?", name="go", after=[first])
    await ledger.start(flow.definition())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "go", "granted": False, "by": "ada"})

    told = await ledger.database.read(lambda tr: queries.nodes(tr, {"workflow": "w"}))

    assert {one["name"]: one["capability"] for one in told["nodes"]} == {
        "first": "room.book",
        "first.compensate": "room.cancel",
        "go": None,
    }
