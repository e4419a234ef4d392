"""Nodes that run another workflow as their child, in the ledger: the test plays broker, agents and time."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulated_store import SimulatedDatabase
from coditect.errors import InputError, InvalidWorkflow, Retryable
from coditect.model.result import Outcome
from coditect.model.retry import Retry
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition, Node, SubWorkflow
from coditect.workflow.graph import MOST_CHILDREN, MOST_DEPTH
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import CHILDREN, CONTINUATIONS, LIVE, RUNS, STATUSES, TIMERS
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.workflows import queries
from tests.unit.dispatcher.ledger.workflows.restored import Player, children, is_over, plan, press, restore, shop
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, tasks


async def test_result_of_the_child_is_the_result_of_the_node(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()
    await ledger.play(player)
    (child,) = await children(ledger)
    told = await ledger.read(queries.nodes, workflow="w")
    rows = await ledger.database.read(lambda tr: queries.rows_of(tr, child))

    assert player.ran == ["order.take", "book.set", "book.bind", "book.sell"]
    assert player.inputs["book.set"] == b'{"title":"Alice"}'
    assert player.inputs["book.sell"] == b'"bound is done"'
    assert [await ledger.state(one) for one in ("w", child)] == [WorkflowState.COMPLETED] * 2
    book = next(one for one in told["nodes"] if one["name"] == "book")
    assert (book["kind"], book["children"]) == ("workflow", [child])
    assert queries.overview(child, *rows)["parent"] == {"workflow": "w", "node": "book"}


async def test_a_child_of_several_last_nodes_gives_an_object_of_their_results(ledger: Ledger) -> None:
    flow = Workflow("w")
    flow.workflow(tasks(a="", b=""), name="book")
    await ledger.start(flow)

    await ledger.complete("a", "b")

    assert (await ledger.read(queries.result, workflow="w"))["value"] == {"a": "a", "b": "b"}


async def test_a_child_that_fails_fails_its_node_and_says_why(ledger: Ledger) -> None:
    await ledger.start(shop())

    await ledger.play(Player("book.bind"))

    (child,) = await children(ledger)
    answer = await ledger.read(queries.result, workflow="w")
    assert await ledger.state(child) is WorkflowState.COMPENSATED
    assert await ledger.state() is WorkflowState.COMPENSATED
    assert (answer["failure"]["node"], answer["failure"]["reason"]) == ("book", "sub_workflow")
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
    told = await ledger.read(queries.attempts, workflow="w", node="book")
    assert [one["status"] for one in told["attempts"]] == ["failed", "completed"]


async def test_redrive_of_the_node_runs_a_new_child_with_the_recorded_input(ledger: Ledger) -> None:
    child = Workflow("press")
    child.task("book.set", child.input, name="typeset")
    flow = Workflow("shop")
    order = flow.task("order.take", name="order")
    flow.workflow(child, {"title": order.result["title"]}, name="book")
    await ledger.start(flow)
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
    await ledger.play(player, limit=2)
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
    await ledger.start(flow)

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    await ledger.go_on()

    assert await ledger.state() is WorkflowState.CANCELED
    assert await children(ledger) == []


async def test_cancel_of_a_child_cancels_its_node(ledger: Ledger) -> None:
    flow = Workflow("w")
    flow.workflow(press(), name="book", retry=Retry(max_attempts=3))
    await ledger.start(flow)
    (child,) = await children(ledger)

    await ledger.ask(Verb.CANCEL, {"workflow": child})

    assert (await ledger.node("book")).state is TaskState.CANCELED
    assert await ledger.state() is WorkflowState.CANCELED


async def test_pause_and_resume_go_to_the_children(ledger: Ledger) -> None:
    outer = Workflow("outer")
    outer.workflow(press(), {"title": "Alice"}, name="inner")
    flow = Workflow("w")
    flow.workflow(outer, name="book")
    await ledger.start(flow)
    (middle,) = await children(ledger)
    (inner,) = await children(ledger, "inner", middle)

    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    paused = [await ledger.state(one) for one in ("w", middle, inner)]
    await ledger.complete("typeset")
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
    await ledger.start(flow, {"n": 3})

    def count(one: Publication) -> Outcome:
        return completed({"n": int(one.task.body.decode().split(":")[1].strip("}")) - 1})

    await ledger.play(count)

    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).children == 2


async def test_recursion_is_bounded(ledger: Ledger) -> None:
    flow = Workflow("endless")
    flow.workflow("endless", name="next")
    await ledger.start(flow)

    answer = await ledger.read(queries.result, workflow="w")

    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.run()).children == MOST_DEPTH
    assert f"more than {MOST_DEPTH} workflows deep" in answer["failure"]["message"]


async def test_number_of_children_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.ledger.workflows.children.begin.MOST_CHILDREN", 3)
    flow, child = Workflow("many"), tasks(a="")
    for _ in range(5):
        flow.workflow(child)
    await ledger.start(flow)
    await ledger.play(lambda _: completed())

    states = sorted((await ledger.states()).values())

    assert MOST_CHILDREN > 3
    assert states == [TaskState.COMPLETED] * 3 + [TaskState.FAILED] * 2
    assert (await ledger.node("tasks_5")).reason == "sub_workflow_limit"


async def test_a_node_that_runs_an_unknown_workflow_is_refused(ledger: Ledger) -> None:
    stray = Definition("w", (Node("a", SubWorkflow("nowhere")),))

    with pytest.raises(InvalidWorkflow, match="There is no workflow of this name here"):
        await ledger.start(stray)


async def test_a_child_that_begins_after_an_upgrade_has_the_definition_that_came_with_its_parent() -> None:
    def shop_of(version: int) -> Definition:
        child = Workflow("press")
        child.task(f"press_of_{version}", name="n")
        flow = Workflow("shop")
        flow.workflow(child, after=[flow.signal("go", name="held")], name="book")
        flow.task(f"sell_of_{version}", name="sold", after=["book"])
        return flow.definition()

    async with SimulatedDatabase() as database:
        before = await Ledger.open(database)
        await before.start(shop_of(1), workflow="old")

        after = Ledger(database, before.lease, before.policy)  # the next dispatcher has nothing in memory
        await after.start(shop_of(2), workflow="new")
        player = Player()
        for workflow in ("old", "new"):
            await after.ask(Verb.SIGNAL, {"workflow": workflow, "signal": "go", "value": None, "id": "1"})
            await after.play(player)

    assert player.ran == ["press_of_1", "sell_of_1", "press_of_2", "sell_of_2"]


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


@pytest.mark.parametrize("verb", [Verb.RESUME, Verb.REDRIVE])
async def test_a_compensation_that_failed_in_the_child_goes_on_by_the_parent(ledger: Ledger, verb: Verb) -> None:
    await ledger.start(shop())
    player = Player("book.sell", "book.unset")
    await ledger.play(player)
    (child,) = await children(ledger)
    stopped = [await ledger.state(one) for one in ("w", child)]
    player.fails.clear()

    await ledger.ask(verb, {"workflow": "w", "node": "book.compensate"})
    await ledger.play(player)

    assert stopped == [WorkflowState.COMPENSATION_FAILED] * 2
    assert player.ran[4:] == ["book.unbind", "book.unset", "book.unset", "order.refund"]
    assert [await ledger.state(one) for one in ("w", child)] == [WorkflowState.COMPENSATED] * 2


@pytest.mark.parametrize("completed", [False, True])
async def test_restore_has_the_child_undo_its_nodes_and_begins_another(ledger: Ledger, completed: bool) -> None:
    await ledger.start(shop())
    player = Player()
    await ledger.play(player, limit=4 if completed else 2)
    ledger.published.clear()
    ran = len(player.ran)
    await restore(ledger, "order")
    await ledger.play(player)

    first, second = await children(ledger)
    again = ["book.unset", "book.set", "book.bind", "book.sell"]
    if completed:
        assert player.ran[ran:] == ["book.unbind", *again]
        with pytest.raises(InputError, match="its parent went on"):
            await ledger.ask(Verb.RESTORE, {"workflow": second, "checkpoint": "typeset", "token": "any", "by": "ada"})
    else:
        assert sorted(player.ran[ran:]) == sorted(again)
    assert [await ledger.state(one) for one in (first, second)] == [WorkflowState.COMPENSATED, WorkflowState.COMPLETED]
    assert await ledger.state() is WorkflowState.COMPLETED


def _press() -> Workflow:
    """A child whose last node runs while the test restores the child."""
    flow = press()
    flow.task("book.dry", name="dry", after=["bound"])
    return flow


async def test_ends_of_a_discarded_and_of_the_present_child_in_one_transaction_both_count(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()
    await ledger.play(player, limit=2)
    ledger.take("bound")
    await restore(ledger, "order")
    await ledger.complete("typeset")
    first, second = await children(ledger)
    last = [ledger.take("bound"), ledger.take("typeset.compensate")]

    await ledger.batch(*[ledger.finished(one, player(one)) for one in last])
    await ledger.play(player)

    assert [await ledger.state(one) for one in (first, second)] == [WorkflowState.COMPENSATED, WorkflowState.COMPLETED]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_plan_names_the_children_that_a_restore_discards(ledger: Ledger) -> None:
    await ledger.start(shop())
    await ledger.play(Player())

    told = (await plan(ledger, "order"))["nodes"]

    assert told == [
        {"node": "book", "state": "completed", "compensated": True},
        {"node": "sold", "state": "completed", "compensated": False},
    ]


async def _child_undoes_for_its_restore(ledger: Ledger, player: Player) -> str:
    await ledger.start(shop(_press()))
    await ledger.play(player, limit=3)
    (child,) = await children(ledger)
    ledger.take("dry")
    await restore(ledger, "typeset", workflow=child)
    assert await ledger.state(child) is WorkflowState.COMPENSATING
    return child


async def test_cancel_reaches_a_workflow_that_undoes_for_its_restore_and_undoes_the_rest(ledger: Ledger) -> None:
    player = Player()
    child = await _child_undoes_for_its_restore(ledger, player)

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "too late"})
    await ledger.play(player)

    assert player.ran[3:] == ["book.unbind", "book.unset", "order.refund"]
    assert [await ledger.state(one) for one in (child, "w")] == [WorkflowState.COMPENSATED] * 2
    assert (await ledger.node("book")).state is TaskState.CANCELED
    assert (await ledger.run(child)).ended is WorkflowState.CANCELED
    await is_over(ledger)


async def test_child_whose_restore_failed_is_only_undone_once_its_parent_went_on(ledger: Ledger) -> None:
    player = Player("book.unbind")
    child = await _child_undoes_for_its_restore(ledger, player)
    await ledger.play(player)
    ended = [await ledger.state(one) for one in (child, "w")]
    player.fails.clear()

    await ledger.ask(Verb.RESUME, {"workflow": child})
    await ledger.play(player)

    assert ended == [WorkflowState.COMPENSATION_FAILED, WorkflowState.COMPENSATED]
    assert player.ran[3:] == ["book.unbind", "order.refund", "book.unbind", "book.unset"]
    assert await ledger.state(child) is WorkflowState.COMPENSATED
    with pytest.raises(InputError, match="compensated"):
        await restore(ledger, "typeset", workflow=child)


async def test_restore_waits_until_a_node_has_taken_the_end_of_its_child(ledger: Ledger) -> None:
    await ledger.start(shop())
    player = Player()
    await ledger.play(player, limit=2)
    ledger.goes_on = False
    await ledger.play(player, limit=1)
    ledger.goes_on = True

    with pytest.raises(Retryable, match="just ended"):
        await restore(ledger, "order")
    await ledger.go_on()
    ledger.published.clear()
    await restore(ledger, "order")
    await ledger.play(player)

    assert player.ran[3:] == ["book.unbind", "book.unset", "book.set", "book.bind", "book.sell"]
    assert await ledger.state() is WorkflowState.COMPLETED


UNDER_CONTROL = (Verb.CANCEL, Verb.PAUSE, Verb.RESUME)


def some_tree(random: Random) -> Definition:
    """A workflow with children and grandchildren, some of which can be undone, or are tried again."""
    flows = [Workflow(name) for name in ("leaf", "middle", "root")]
    for depth, flow in enumerate(flows):
        names: list[str] = []
        for number in range(random.randint(1, 3)):
            place: Any = {"name": f"n{number}", "after": random.sample(names, random.randint(0, len(names)))}
            if depth and random.random() < 0.6:
                retry = random.choice([None, Retry(max_attempts=2)])
                flow.workflow(flows[depth - 1], retry=retry, **place)
            else:
                undo: Any = random.choice([{}, {"compensate": "undo"}])
                flow.task("work", retry=Retry(max_attempts=1), **undo, **place)
            names.append(f"n{number}")
    return flows[-1].definition()


async def some_step(ledger: Ledger, random: Random, undone_alone: set[str]) -> None:
    """Takes a step, and notes which children are asked to go on with a compensation that failed."""
    draw = random.random()
    if draw < 0.2:
        await ledger.go_on()
    elif draw < 0.35:
        runs = await ledger.rows(RUNS)
        verb, (key, row) = random.choice(UNDER_CONTROL), random.choice(runs)
        body = {"workflow": RUNS.unpack(key)[0], "compensate": random.random() < 0.5}
        if verb is Verb.RESUME and RunRecord.unpack(row).state is WorkflowState.COMPENSATION_FAILED:
            undone_alone.add(body["workflow"])
        await ledger.batch(Asked(verb, body))  # some are refused
    elif draw < 0.45:
        await ledger.pass_time(60)
    elif ledger.published:
        one = ledger.published.pop(random.randrange(len(ledger.published)))
        fails = one.task.capability == "work" and random.random() < 0.25
        await ledger.batch(ledger.finished(one, failed() if fails else completed()))


async def finish(ledger: Ledger) -> None:
    """Lets everything go on until nothing is left to do."""
    for _ in range(300):
        live = await ledger.rows(LIVE)
        for key, _ in live:
            await ledger.batch(Asked(Verb.RESUME, {"workflow": LIVE.unpack(key)[1]}))
        await ledger.go_on()
        await ledger.pass_time(60)
        await ledger.play(lambda _: completed())
        if not live:
            return
    raise AssertionError("some workflow does not end")


async def check(ledger: Ledger, undone_alone: set[str]) -> None:
    """No parent has ended before its children, the counts are right, and nothing is left.

    A child whose compensation failed goes on with it when it is resumed, though its parent has taken its end.
    """
    found = await ledger.database.read(lambda tr: tr.get_ranges([one.range() for one in (RUNS, STATUSES, CHILDREN)]))
    runs = {RUNS.unpack(key)[0]: RunRecord.unpack(row) for key, row in found[0]}
    states: dict[str, Counter[str]] = {workflow: Counter() for workflow in runs}
    for key, row in found[1]:
        states[STATUSES.unpack(key)[0]][NodeRecord.unpack(row).state.value] += 1
    for workflow, run in runs.items():
        assert +Counter(run.counts) == states[workflow]
    children = {child.decode(): CHILDREN.unpack(key)[0] for key, child in found[2]}
    for child, parent in children.items():
        ended_ms = runs[parent].finished_ms
        alone = child in undone_alone and runs[child].ended is not None
        assert ended_ms is None or runs[child].state.terminal or alone
        if runs[parent].state is WorkflowState.COMPENSATED and runs[child].ended is None:
            assert not runs[child].to_compensate or runs[child].keeps  # as the cancel of the child said
    assert sum(run.children for run in runs.values()) == len(children)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
async def test_no_parent_ends_before_its_children_whatever_is_asked_of_any_of_them(seed: int) -> None:
    random = Random(seed)
    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database)
        ledger.goes_on = random.random() < 0.5
        ledger.defer_dependents = random.random() < 0.3
        await ledger.start(some_tree(random))
        undone_alone = set[str]()

        for _ in range(random.randint(0, 40)):
            await some_step(ledger, random, undone_alone)
            await check(ledger, undone_alone)
        await finish(ledger)
        await check(ledger, undone_alone)
        left = await database.read(lambda tr: tr.get_ranges([one.range() for one in (CONTINUATIONS, TIMERS, LIVE)]))

    assert left == [[], [], []]
