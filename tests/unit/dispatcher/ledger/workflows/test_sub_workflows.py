"""Nodes that run another workflow as their child, in the ledger: the test plays broker, agents and time."""

from __future__ import annotations

import pytest

from coditect.errors import InputError, InvalidWorkflow
from coditect.model.result import Outcome
from coditect.model.retry import Retry
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition, Node, SubWorkflow
from coditect.workflow.states import TaskState, WorkflowState
from coditect.workflow.sub_workflows import MOST_CHILDREN, MOST_DEPTH
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import ENDED, RUNS, TIMERS, TODO, UPLOADS
from dispatcher.ledger.workflows import queries, remove
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.lone_ledger import Ledger, completed
from tests.unit.dispatcher.pressing import Player, children, press, shop


async def test_result_of_the_child_is_the_result_of_the_node(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()

    await ledger.play(player)

    (child,) = await children(ledger)
    assert player.ran == ["order.take", "book.set", "book.bind", "book.sell"]
    assert player.inputs["book.set"] == b'{"title":"Alice"}'
    assert player.inputs["book.sell"] == b'"bound is done"'
    assert [await ledger.state(one) for one in ("w", child)] == [WorkflowState.COMPLETED] * 2


async def test_a_child_of_several_last_nodes_gives_an_object_of_their_results(ledger: Ledger) -> None:
    child = Workflow("pair")
    child.task("one", name="a")
    child.task("two", name="b")
    flow = Workflow("w")
    flow.workflow(child, name="book")
    await ledger.start(flow.definition())

    await ledger.play(lambda one: completed(one.task.capability))

    answer = await ledger.database.read(lambda tr: queries.result(tr, {"workflow": "w"}))
    assert answer["value"] == {"a": "one", "b": "two"}


async def test_reports_of_parent_and_child_name_each_other(ledger: Ledger) -> None:
    await ledger.start(shop())
    await ledger.play(Player())
    (child,) = await children(ledger)

    told = await ledger.database.read(lambda tr: queries.nodes(tr, {"workflow": "w"}))
    rows = await ledger.database.read(lambda tr: queries.rows_of(tr, child))

    book = next(one for one in told["nodes"] if one["name"] == "book")
    assert (book["kind"], book["children"]) == ("workflow", [child])
    assert queries.overview(child, *rows)["parent"] == {"workflow": "w", "node": "book"}


async def test_a_child_that_fails_fails_its_node_and_says_why(ledger: Ledger) -> None:
    await ledger.start(shop())

    await ledger.play(Player("book.bind"))

    (child,) = await children(ledger)
    answer = await ledger.database.read(lambda tr: queries.result(tr, {"workflow": "w"}))
    assert await ledger.state(child) is WorkflowState.COMPENSATED
    assert await ledger.state() is WorkflowState.COMPENSATED
    assert answer["failure"]["node"] == "book"
    assert answer["failure"]["reason"] == "sub_workflow"
    assert "bound: no" in answer["failure"]["message"]


async def test_a_node_with_a_retry_runs_a_new_child_after_one_that_failed(ledger: Ledger) -> None:
    await ledger.start(shop(retry=Retry(max_attempts=3)))
    player = Player("book.bind")
    await ledger.play(player)
    waiting = (await ledger.node("book")).state
    player.fails.clear()

    await ledger.pass_time(60)
    await ledger.play(player)

    both = await children(ledger)
    assert waiting is TaskState.RETRY_WAIT
    assert [await ledger.state(child) for child in both] == [WorkflowState.COMPENSATED, WorkflowState.COMPLETED]
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.node("book")).attempt == 2
    told = await ledger.database.read(lambda tr: queries.attempts(tr, {"workflow": "w", "node": "book"}))
    assert [one["status"] for one in told["attempts"]] == ["failed", "completed"]


async def test_redrive_of_the_node_runs_a_new_child_with_the_recorded_input(ledger: Ledger) -> None:
    child = Workflow("press")
    child.task("book.set", child.input, name="typeset")
    flow = Workflow("shop")
    order = flow.task("order.take", name="order")
    flow.workflow(child, {"title": order.result["title"]}, name="book")
    await ledger.start(flow.definition())
    player = Player("book.set")
    await ledger.play(player)
    (first,) = await children(ledger)
    player.fails.clear()

    with pytest.raises(InputError, match="its parent went on") as refused:
        await ledger.ask(Verb.RESUME, {"workflow": first})
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "book"})
    await ledger.play(player)

    assert "--node w:book" in str(refused.value.facts["fix"])
    assert player.ran == ["order.take", "book.set", "book.set"]
    assert len(await children(ledger)) == 2
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_cancel_of_the_parent_cancels_the_child_and_waits_for_its_compensation(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()
    for _ in range(2):
        one = ledger.published.pop()
        await ledger.batch(ledger.finished(one, player(one)))
    (child,) = await children(ledger)
    ledger.published.clear()

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "rain"})
    between = await ledger.state(child), (await ledger.node("book")).state
    await ledger.play(player)

    assert between == (WorkflowState.COMPENSATING, TaskState.WORKING)
    assert player.ran == ["order.take", "book.set", "book.unset", "order.refund"]
    assert [(await ledger.run(one)).ended for one in ("w", child)] == [WorkflowState.CANCELED] * 2
    assert (await ledger.run(child)).reason == "rain"


async def test_cancel_before_the_child_is_started_starts_none(ledger: Ledger) -> None:
    flow = Workflow("w")
    flow.workflow(press(), name="book")
    ledger.goes_on = False
    await ledger.start(flow.definition())

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    await ledger.go_on()

    assert await ledger.state() is WorkflowState.CANCELED
    assert await children(ledger) == []


async def test_cancel_of_a_child_cancels_its_node(ledger: Ledger) -> None:
    flow = Workflow("w")
    flow.workflow(press(), name="book", retry=Retry(max_attempts=3))
    await ledger.start(flow.definition())
    (child,) = await children(ledger)

    await ledger.ask(Verb.CANCEL, {"workflow": child})

    assert (await ledger.node("book")).state is TaskState.CANCELED
    assert await ledger.state() is WorkflowState.CANCELED


async def test_pause_and_resume_go_to_the_children(ledger: Ledger) -> None:
    outer = Workflow("outer")
    outer.workflow(press(), {"title": "Alice"}, name="inner")
    flow = Workflow("w")
    flow.workflow(outer, name="book")
    await ledger.start(flow.definition())
    (middle,) = await children(ledger)
    (inner,) = await children(ledger, "inner", middle)

    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    paused = [await ledger.state(one) for one in ("w", middle, inner)]
    one = ledger.published.pop()
    await ledger.batch(ledger.finished(one, completed()))
    held = list(ledger.published)
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(Player())

    assert paused == [WorkflowState.PAUSED] * 3
    assert held == []
    assert [await ledger.state(one) for one in ("w", middle, inner)] == [WorkflowState.COMPLETED] * 3


async def test_a_child_that_begins_while_its_parent_is_paused_waits_for_the_resume(ledger: Ledger) -> None:
    await ledger.start(shop())
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})

    await ledger.play(Player())
    (child,) = await children(ledger)
    held = await ledger.state(child)
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(Player())

    assert held is WorkflowState.PAUSED
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_a_workflow_that_runs_itself_ends_by_its_condition(ledger: Ledger) -> None:
    flow = Workflow("countdown")
    step = flow.task("count.down", flow.input, name="step")
    flow.workflow("countdown", step.result, name="next", when="results.step.n > `0`")
    await ledger.start(flow.definition(), {"n": 3})

    def count(one: Publication) -> Outcome:
        return completed({"n": int(one.task.body.decode().split(":")[1].strip("}")) - 1})

    await ledger.play(count)

    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).children == 2


async def test_recursion_is_bounded(ledger: Ledger) -> None:
    flow = Workflow("endless")
    flow.workflow("endless", name="next")
    await ledger.start(flow.definition())

    answer = await ledger.database.read(lambda tr: queries.result(tr, {"workflow": "w"}))

    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.run()).children == MOST_DEPTH
    assert f"more than {MOST_DEPTH} workflows deep" in answer["failure"]["message"]


async def test_number_of_children_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.ledger.workflows.children.begin.MOST_CHILDREN", 3)
    child = Workflow("one")
    child.task("work", name="a")
    flow = Workflow("many")
    for _ in range(5):
        flow.workflow(child)
    await ledger.start(flow.definition())
    await ledger.play(lambda _: completed())

    states = sorted((await ledger.states()).values())

    assert MOST_CHILDREN > 3
    assert states == [TaskState.COMPLETED] * 3 + [TaskState.FAILED] * 2
    assert (await ledger.node("one_5")).reason == "sub_workflow_limit"


async def test_a_node_that_runs_an_unknown_workflow_is_refused(ledger: Ledger) -> None:
    stray = Definition("w", (Node("a", SubWorkflow("nowhere")),))

    with pytest.raises(InvalidWorkflow, match="There is no workflow of this name here"):
        await ledger.start(stray)


async def test_an_ended_tree_leaves_no_timers_and_no_work(ledger: Ledger) -> None:
    await ledger.start(shop(retry=Retry(max_attempts=2)))
    await ledger.play(Player())

    left = await ledger.database.read(lambda tr: [tr.get_range(*space.range()) for space in (TIMERS, TODO)])

    assert left == [[], []]


async def test_a_child_is_kept_as_long_as_its_parent(ledger: Ledger) -> None:
    await ledger.start(shop())
    while not await children(ledger):
        one = ledger.published.pop()
        await ledger.batch(ledger.finished(one, completed({"title": "Alice"})))
    (child,) = await children(ledger)
    for _ in range(2):
        one = ledger.published.pop()
        await ledger.batch(ledger.finished(one, completed()))
    later = ledger.now_ms + 1_000_000

    kept = await ledger.state(child), await ledger.database.run(lambda tr: remove.condemn(tr, child, before_ms=later))
    await ledger.play(Player())
    gone = await ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=later))
    left = await ledger.database.read(lambda tr: tr.get_ranges([one.range() for one in (ENDED, RUNS, UPLOADS)]))

    assert kept == (WorkflowState.COMPLETED, False)
    assert gone is True
    assert left[:2] == [[], []]
    assert [UPLOADS.unpack(key)[0] for key, _ in left[2]] == sorted(["w", child])


async def test_a_child_that_begins_after_an_upgrade_has_the_definition_that_came_with_its_parent() -> None:
    def shop_of(version: int) -> Definition:
        child = Workflow("press")
        child.task(f"press_of_{version}", name="n")
        flow = Workflow("shop")
        flow.workflow(child, after=[flow.signal("go", name="held")], name="book")
        flow.task(f"sell_of_{version}", name="sold", after=["book"])
        return flow.definition()

    async with MemoryDatabase() as database:
        before = await Ledger.open(database)
        await before.start(shop_of(1), workflow="old")

        after = Ledger(database, before.lease, before.policy)  # the next dispatcher has nothing in memory
        await after.start(shop_of(2), workflow="new")
        player = Player()
        for workflow in ("old", "new"):
            await after.ask(Verb.SIGNAL, {"workflow": workflow, "signal": "go", "value": None, "id": "1"})
            await after.play(player)

    assert player.ran == ["press_of_1", "sell_of_1", "press_of_2", "sell_of_2"]
