"""Checkpoints of a workflow and its restore: what stays, what is undone, and what runs again under which fence."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from coditect import Workflow
from coditect.errors import InputError, NotFound, Retryable, VersionConflict
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.wire.state import workflow_space
from coditect.workflow.definition import Definition
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.coordination import state
from dispatcher.ledger.keyspace import COMPENSATE
from dispatcher.ledger.workflows.checkpoints import positions
from tests.unit.dispatcher.ledger.workflows.restored import Played, is_over, listed, plan, restore
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


def chain(*, compensated: bool = True) -> Definition:
    flow = Workflow("trip")
    undo: dict[str, Any] = {"compensate": "undo"} if compensated else {}
    hotel = flow.task("book", name="hotel", **undo)
    flight = flow.task("book", {"room": From("results.hotel")}, name="flight", after=[hotel], **undo)
    flow.task("book", {"seat": From("results.flight")}, name="car", after=[flight], **undo)
    return flow.definition()


async def test_nodes_that_completed_later_run_again_with_new_fences_and_the_new_results(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.play(Played())
    before, again = await ledger.node("car"), Played(tells=" again")

    await restore(ledger, "hotel")
    await ledger.play(again)

    assert again.order == ["flight", "car"]
    assert again.inputs == {"flight": {"room": "hotel"}, "car": {"seat": "flight again"}}
    assert (await ledger.node("car")).fence > before.fence
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_late_result_of_a_discarded_attempt_is_refused(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    stale = ledger.published.pop()

    await restore(ledger, "hotel")
    await ledger.batch(ledger.finished(stale, completed("stale")))
    fresh = ledger.published.pop()
    await ledger.batch(ledger.finished(stale, completed("stale")))
    await ledger.batch(ledger.finished(fresh, completed("fresh")))

    assert [(at.node, number) for effects in ledger.seen for at, number in effects.cancels] == [
        ("flight", stale.number)
    ]
    assert sum(effects.late for effects in ledger.seen) == 2
    assert loads(ledger.published.pop().task.body) == {"seat": "fresh"}


async def test_discarded_nodes_are_undone_in_reverse_order_before_anything_runs_again(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(Played())
    again = Played(tells=" again")

    told = await restore(ledger, "hotel")
    under_way = [one.node_key.node for one in ledger.published]
    await ledger.play(again)

    assert (told["state"], under_way) == ("compensating", ["car.compensate"])
    assert again.order == ["car.compensate", "flight.compensate", "flight", "car"]
    assert again.inputs["flight.compensate"] == {"input": {"room": "hotel"}, "result": "flight"}
    assert await ledger.state() is WorkflowState.COMPLETED
    rows = await ledger.database.read(lambda tr: tr.get_range(*COMPENSATE.range(("w",))))
    assert [row for _, row in rows] == [b"hotel", b"flight", b"car"]
    await is_over(ledger)


async def test_node_that_ran_again_is_undone_with_its_new_result_when_the_workflow_fails_later(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(Played())
    await restore(ledger, "hotel")
    again = Played("car", tells=" again")

    await ledger.play(again)

    assert again.order[-2:] == ["flight.compensate", "hotel.compensate"]
    assert again.inputs["flight.compensate"] == {"input": {"room": "hotel"}, "result": "flight again"}
    assert again.inputs["hotel.compensate"] == {"input": {}, "result": "hotel"}
    assert await ledger.state() is WorkflowState.COMPENSATED


async def test_compensation_that_fails_ends_the_restore_and_a_resume_goes_on_with_it(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("flight")))

    await restore(ledger, "hotel")
    ledger.published = ledger.published[1:]  # the car's is called off
    await ledger.play(Played("flight.compensate"))
    before, again = await ledger.run(), Played()
    with pytest.raises(InputError, match="compensation of an earlier restore has failed") as refused:
        await restore(ledger, "hotel")
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(again)

    assert "workflow resume w" in str(refused.value.facts["fix"])
    assert (before.state, before.open) == (WorkflowState.COMPENSATION_FAILED, 0)
    assert again.order == ["flight.compensate", "flight", "car"]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_failed_workflow_without_compensations_goes_on_from_a_checkpoint(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.play(Played("car"))
    before, again = await ledger.state(), Played()

    await restore(ledger, "hotel")
    await ledger.play(again)

    assert before is WorkflowState.FAILED
    assert again.order == ["flight", "car"]
    assert (await ledger.run()).lasts == {"completed": 1}
    await is_over(ledger)


async def test_paused_workflow_stays_paused_and_runs_the_discarded_nodes_when_it_is_resumed(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("flight")))
    played = Played()

    await restore(ledger, "hotel")
    await ledger.play(played)
    paused = await ledger.state()
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(played)

    assert paused is WorkflowState.PAUSED
    assert played.order == ["flight.compensate", "flight", "car"]


async def test_what_ended_in_the_millisecond_of_a_checkpoint_stays_but_for_what_came_after_its_node(
    ledger: Ledger,
) -> None:
    flow = Workflow("wide")
    one, two = flow.task("c", name="one"), flow.task("c", name="two")
    three = flow.task("c", name="three", after=[one])
    flow.task("c", name="four", after=[three])
    flow.task("c", name="five", after=[two])
    await ledger.start(flow.definition())
    await ledger.play(Played())
    again = Played()

    await restore(ledger, "one")
    await ledger.play(again)

    assert again.order == ["three", "four"]


async def test_checkpoint_on_request_discards_what_ended_after_it_and_runs_the_running_node_again(
    ledger: Ledger,
) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "booked", "writer": "cli"})
    await ledger.play(Played())
    await restore(ledger, "booked")
    again = Played()
    await ledger.play(again)

    assert again.order == ["flight", "car"]
    named = (await listed(ledger))["checkpoints"][0]
    assert (named["checkpoint"], named["node"], named["by"]) == ("booked", "", "cli")
    assert [(one["checkpoint"], one["by"]) for one in (await listed(ledger))["restores"]] == [("booked", "ada")]


async def test_checkpoint_on_request_that_comes_after_the_restored_position_is_forgotten(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "first"})
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("flight")))
    await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "second"})

    await restore(ledger, "first")

    with pytest.raises(NotFound, match="no such checkpoint"):
        await restore(ledger, "second")
    with pytest.raises(NotFound, match="no such checkpoint"):
        await restore(ledger, "flight")


async def test_checkpoint_with_the_name_of_a_node_or_of_an_ended_workflow_is_refused(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))

    with pytest.raises(InputError, match="node of the workflow has this name"):
        await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "car"})
    with pytest.raises(InputError, match="checkpoint's name is letters"):
        await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "a b"})
    with pytest.raises(InputError, match="not the present one"):
        by = {"workflow": "w", "node": "car", "fence": 1}
        await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "x", "by": by | {"node": "hotels"}})
    await ledger.play(Played())
    with pytest.raises(InputError, match="has ended"):
        await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "late"})


async def test_plan_tells_what_cannot_be_undone_and_a_restore_by_an_old_plan_is_refused(ledger: Ledger) -> None:
    flow = Workflow("mixed")
    one = flow.task("c", name="one")
    two = flow.task("c", name="two", after=[one], compensate="undo")
    three = flow.task("c", name="three", after=[two])
    flow.task("c", name="four", after=[three], compensate="undo")
    await ledger.start(flow.definition())
    for name in ("one", "two", "three"):
        await ledger.batch(ledger.finished(ledger.published.pop(), completed(name)))
    planned = await plan(ledger, "one")

    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))

    assert [(one["node"], one["compensated"]) for one in planned["nodes"]] == [
        ("four", False), ("three", False), ("two", True),
    ]  # fmt: skip
    with pytest.raises(VersionConflict, match="went on since"):
        asked = {"workflow": "w", "checkpoint": "one", "token": planned["token"], "by": "ada"}
        await ledger.ask(Verb.RESTORE, asked)


async def test_nodes_that_never_began_or_wait_again_are_in_no_plan(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.play(Played())
    ledger.room[""] = 0
    await restore(ledger, "hotel")

    planned = await plan(ledger, "hotel")

    assert planned["nodes"] == []


async def test_nodes_that_run_again_after_a_restore_or_wait_for_room_after_an_attempt_are_in_the_next_plan(
    ledger: Ledger,
) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.play(Played())
    await restore(ledger, "hotel")
    running = await plan(ledger, "hotel")
    ledger.room[""] = 0
    outcome = replace(failed(retryable=True), retry_ms=1_000)
    await ledger.batch(ledger.finished(ledger.published.pop(), outcome))
    await ledger.pass_time(2)
    ready = await plan(ledger, "hotel")

    assert (await ledger.node("flight")).state is TaskState.READY
    assert [[one["node"] for one in told["nodes"]] for told in (running, ready)] == [["flight"], ["flight"]]
    assert running["token"] != ready["token"]


@pytest.mark.parametrize("compensate", [True, False])
async def test_canceled_and_compensated_workflows_are_not_restored_and_say_why(
    ledger: Ledger, compensate: bool
) -> None:
    await ledger.start(chain())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    await ledger.ask(Verb.CANCEL, {"workflow": "w", "compensate": compensate})
    await ledger.play(Played())

    with pytest.raises(InputError, match="compensated workflow" if compensate else "canceled workflow"):
        await restore(ledger, "hotel")


async def test_unknown_checkpoints_and_nodes_that_have_not_completed_are_refused(ledger: Ledger) -> None:
    await ledger.start(chain())

    for unknown in ("hotel", "nothing", "hotel.compensate"):
        with pytest.raises(NotFound, match="no such checkpoint"):
            await restore(ledger, unknown)


async def test_second_restore_and_redrive_wait_until_a_restore_is_done(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(Played())
    await restore(ledger, "hotel")

    with pytest.raises(Retryable, match="earlier restore is not done"):
        await restore(ledger, "hotel")
    with pytest.raises(Retryable, match="being restored"):
        await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "x"})
    with pytest.raises(Retryable, match="being restored"):
        await ledger.ask(Verb.STATE_PUT, {"space": workflow_space("w"), "key": "k", "value": 1})


async def test_shared_state_is_what_it_was_and_its_versions_go_on(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))

    async def put(key: str, value: Any, **more: Any) -> int:
        body = {"space": workflow_space("w"), "key": key, "value": value} | more
        return int((await ledger.ask(Verb.STATE_PUT, body))["version"])

    async def get(key: str) -> tuple[Any, int, str]:
        body = {"space": workflow_space("w"), "key": key}
        entry = await ledger.database.read(partial(state.get, body=body))
        return entry["value"], entry["version"], entry["writer"]

    await put("plan", "first")
    await put("gone", "there", task="w:hotel")
    await put("same", 1)
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    await put("plan", "of the flight", task="w:flight")  # in the same millisecond
    ledger.now_ms += 1
    await put("gone", None, delete=True)
    await put("new", 1)
    await ledger.play(Played())

    await restore(ledger, "hotel")

    assert await get("gone") == ("there", 3, "ada")
    assert await get("new") == (None, 2, "ada")
    assert await get("same") == (1, 1, "")
    assert (await get("plan"))[0] == "of the flight"  # the node had not ended: it was there, or a client's


async def test_restore_is_refused_when_the_shared_state_of_its_checkpoint_is_not_kept(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    body = {"space": workflow_space("w"), "key": "count"}
    await ledger.batch(ledger.finished(ledger.published.pop(), completed("hotel")))
    ledger.now_ms += 1
    for number in range(21):
        await ledger.ask(Verb.STATE_PUT, body | {"value": number})

    with pytest.raises(InputError, match="not kept any more"):
        await restore(ledger, "hotel")

    assert await ledger.state() is WorkflowState.RUNNING


async def test_node_that_completes_after_a_restore_takes_no_other_ones_place_in_the_order_of_undoing(
    ledger: Ledger,
) -> None:
    flow = Workflow("order")
    first = flow.task("c", name="first")
    flow.task("c", name="next", after=[first])
    flow.task("c", name="kept", compensate="undo")
    flow.task("c", name="other", compensate="undo")
    await ledger.start(flow.definition())
    for name in ("first", "next", "kept"):
        one = next(one for one in ledger.published if one.node_key.node == name)
        await ledger.batch(ledger.finished(one, completed(name)))

    await restore(ledger, "first")
    other, again = (ledger.published[-1:], ledger.published[-2:-1])
    assert [one.node_key.node for one in (*other, *again)] == ["other", "next"]
    played = Played("next")
    for one in (*other, *again):
        await ledger.batch(ledger.finished(one, played(one)))
    ledger.published = ledger.published[-1:]
    await ledger.play(played)

    assert played.order == ["other", "next", "other.compensate", "kept.compensate"]


@pytest.mark.parametrize("passes", [True, False])
async def test_checkpoint_with_many_dependents_is_refused_only_where_all_ended_in_its_millisecond(
    prompt_ledger: Ledger, passes: bool
) -> None:
    ledger = prompt_ledger
    flow = Workflow("wide")
    first = flow.task("c", name="first")
    for number in range(positions.MOST_LATER + 1):
        flow.task("c", name=f"n{number}", after=[first])
    await ledger.start(flow.definition())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    ledger.now_ms += passes
    await ledger.batch(*[ledger.finished(one, completed()) for one in ledger.published])
    ledger.published.clear()

    if passes:
        await restore(ledger, "first")
        assert len(ledger.published) == positions.MOST_LATER + 1
    else:
        with pytest.raises(InputError, match="in the millisecond of this checkpoint"):
            await restore(ledger, "first")
