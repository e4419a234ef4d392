"""What a restore does to each kind of node: maps, waits, approvals, signals, loops, joins and retries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coditect import Workflow
from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.nodes import advance
from tests.unit.dispatcher.ledger.workflows.restored import Played, is_over, restore
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, few_steps


def chain() -> Definition:
    flow = Workflow("chain")
    hotel = flow.task("book", name="hotel")
    flight = flow.task("book", name="flight", after=[hotel])
    flow.task("book", name="car", after=[flight])
    return flow.definition()


class Fanned(Played):
    def __init__(self, *items: str) -> None:
        super().__init__()
        self.items = items

    def __call__(self, publication: Publication) -> Outcome:
        outcome = super().__call__(publication)
        return completed(list(self.items)) if publication.node_key.node == "first" else outcome


@pytest.mark.parametrize("items", [("x", "y"), ("x", "y", "z", "u")])
async def test_map_runs_again_over_the_new_list_whatever_the_length(ledger: Ledger, items: tuple[str, ...]) -> None:
    flow = Workflow("fan")
    before = flow.task("c", name="before")
    flow.task("list", name="first", after=[before])
    flow.map("one", From("results.first"), {"it": From("item")}, limit=50, name="each", after=["first"])
    flow.task("sum", From("results.each"), name="sum", after=["each"])
    await ledger.start(flow.definition())
    await ledger.play(Fanned("a", "b", "c"))
    again = Fanned(*items)

    await restore(ledger, "before")
    await ledger.play(again)

    assert again.inputs["sum"] == [f"each[{number}]" for number in range(len(items))]
    assert [again.inputs[f"each[{number}]"] for number in range(len(items))] == [{"it": item} for item in items]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_elements_that_completed_before_a_checkpoint_stay_and_the_others_are_undone_and_run_again(
    ledger: Ledger,
) -> None:
    flow = Workflow("fan")
    flow.map("one", ["a", "b", "c"], {"it": From("item")}, name="each", compensate="undo")
    await ledger.start(flow.definition())
    await ledger.batch(ledger.finished(ledger.published.pop(0), completed("kept")))
    await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "one-done"})
    await ledger.play(Played())
    again = Played()

    await restore(ledger, "one-done")
    await ledger.play(again)

    assert sorted(again.order) == ["each[1]", "each[1].compensate", "each[2]", "each[2].compensate"]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_wait_approval_and_signal_are_waited_for_again_and_a_signal_that_came_is_not_lost(
    ledger: Ledger,
) -> None:
    flow = Workflow("waits")
    first = flow.task("c", name="first")
    wait = flow.wait("2h", name="pause", after=[first])
    go = flow.signal("go", name="go", after=[first])
    ask = flow.approval("Ship it?", name="ask", after=[first])
    flow.task("c", {"go": From("results.go")}, name="last", after=[wait, go, ask])
    await ledger.start(flow.definition())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    await ledger.pass_time(1)
    await ledger.ask(Verb.SIGNAL, {"workflow": "w", "signal": "go", "value": 7, "id": "s1"})
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "ask", "granted": True, "by": "ada"})
    await ledger.pass_time(7_200)
    await ledger.play(Played())

    await restore(ledger, "first")
    states = await ledger.states()
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "ask", "granted": True, "by": "ada"})
    await ledger.pass_time(7_200)
    again = Played()
    await ledger.play(again)

    assert (states["pause"], states["ask"]) == (TaskState.WAITING, TaskState.AWAITING_APPROVAL)
    assert states["go"] is TaskState.COMPLETED
    assert again.inputs == {"last": {"go": 7}}


async def test_loop_of_a_discarded_node_begins_with_its_first_iteration(ledger: Ledger) -> None:
    flow = Workflow("loop")
    first = flow.task("c", name="first")
    flow.task("c", name="poll", after=[first], repeat={"until": "result == `2`", "most": 2})
    await ledger.start(flow.definition())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    await ledger.batch(ledger.finished(ledger.published.pop(), completed(1)))

    await restore(ledger, "first")
    ledger.published = ledger.published[-1:]
    await ledger.batch(ledger.finished(ledger.published.pop(), completed(1)))
    await ledger.batch(ledger.finished(ledger.published.pop(), completed(2)))

    assert await ledger.state() is WorkflowState.COMPLETED


async def test_node_that_waits_for_any_predecessor_stays_when_it_had_run_by_then(ledger: Ledger) -> None:
    flow = Workflow("any")
    quick, slow = flow.task("c", name="quick"), flow.task("c", name="slow")
    flow.task("c", name="either", after=[quick, slow], join="any")
    await ledger.start(flow.definition())
    by_name = {one.node_key.node: one for one in ledger.published}
    ledger.published.clear()
    await ledger.batch(ledger.finished(by_name["quick"], completed()))
    ledger.now_ms += 1
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    ledger.now_ms += 1
    await ledger.batch(ledger.finished(by_name["slow"], completed()))
    again = Played()

    await restore(ledger, "either")
    await ledger.play(again)

    assert again.order == ["slow"]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_retry_that_waits_for_its_time_is_discarded_with_its_timer(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.batch(ledger.finished(ledger.published.pop(), completed()))
    retried = replace(failed(retryable=True), retry_ms=700)
    await ledger.batch(ledger.finished(ledger.published.pop(), retried))

    await restore(ledger, "hotel")
    await ledger.pass_time(600)

    assert [one.node_key.node for one in ledger.published] == ["flight"]
    assert (await ledger.node("flight")).attempt == 1


async def test_cancel_during_a_restore_ends_the_workflow_and_the_restore(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(Played())
    ledger.goes_on = False
    with pytest.MonkeyPatch.context() as patched:
        few_steps(patched, 1)
        await restore(ledger, "hotel")
        await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    for _ in range(20):
        await ledger.go_on()

    assert await ledger.state() is WorkflowState.CANCELED
    await is_over(ledger)


async def test_large_restore_goes_on_in_later_transactions(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch, 3)
    flow = Workflow("large")
    first = flow.task("c", name="first")
    nodes = [flow.task("c", name=f"n{number}", after=[first], compensate="undo") for number in range(20)]
    flow.task("c", name="last", after=nodes)
    await ledger.start(flow.definition())
    await ledger.play(Played())
    again = Played()

    await restore(ledger, "first")
    await ledger.play(again)

    undone = [name.removesuffix(".compensate") for name in again.order[:20]]
    assert sorted(undone) == sorted(node.name for node in nodes)
    assert again.order[-1] == "last"
    assert len(again.order) == 41
    assert advance.MOST_STEPS == 3
    await is_over(ledger)
