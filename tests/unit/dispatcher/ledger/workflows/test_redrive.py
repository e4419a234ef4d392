"""What begins again: nodes, what comes after them, and maps; what of an earlier life is told, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from coditect import Workflow
from coditect.errors import InputError
from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.workflow.definition import After, Definition, OnFailure
from coditect.workflow.join import Tally
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import TODO
from dispatcher.ledger.nodes.advance import AGAIN, MOST_STEPS, ROOT
from dispatcher.ledger.nodes.inputs import FAILURE, RESULT, value_of
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows import queries, redrive_steps, status
from tests.unit.dispatcher.lone_ledger import Ledger, NodeKey, completed, failed


async def take(ledger: Ledger) -> dict[str, Publication]:
    """What was published since the last time, by node."""
    taken = {one.node_key.node: one for one in ledger.published}
    ledger.published.clear()
    return taken


async def redrive(ledger: Ledger, node: str, **more: Any) -> Any:
    return await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": node, **more})


def one_map(limit: int = 10) -> Definition:
    flow = Workflow("map")
    flow.map("work", "input", {"n": From("item")}, limit=limit, name="each")
    return flow.definition()


# -- what comes after it ------------------------------------------------------------------------------------


async def test_node_that_waits_for_another_too_waits_for_both_again(ledger: Ledger) -> None:
    flow = Workflow("both")
    a, b = flow.task("work", name="a"), flow.task("work", name="b")
    flow.task("work", after=[After(a.name, OnFailure.ALLOW), b], name="d")
    await ledger.start(flow.definition())
    first = await take(ledger)
    await ledger.batch(ledger.finished(first["a"], failed()))

    await redrive(ledger, "a")
    await ledger.batch(ledger.finished((await take(ledger))["a"], completed(1)))
    early = await take(ledger)
    await ledger.batch(ledger.finished(first["b"], completed(1)))

    assert early == {}
    assert list(await take(ledger)) == ["d"]


async def test_node_that_needs_any_waits_for_the_others_again(ledger: Ledger) -> None:
    flow = Workflow("any")
    before = [flow.task("work", name=name) for name in "abc"]
    flow.task("work", after=before, join="any", name="d")
    await ledger.start(flow.definition())
    first = await take(ledger)
    await ledger.batch(ledger.finished(first["a"], failed()))
    await redrive(ledger, "a")
    again = await take(ledger)

    await ledger.batch(ledger.finished(again["a"], failed()), ledger.finished(first["b"], failed()))
    meanwhile = (await ledger.node("d")).state
    await ledger.batch(ledger.finished(first["c"], completed(1)))

    assert meanwhile is TaskState.BLOCKED
    assert (await ledger.node("d")).state is TaskState.PUBLISHED


async def test_node_whose_predecessor_was_canceled_is_not_redriven_alone(ledger: Ledger) -> None:
    flow = Workflow("chain")
    flow.task("work", after=[flow.task("work", name="a")], name="b")
    await ledger.start(flow.definition())
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})

    with pytest.raises(InputError, match="comes after ended without a value"):
        await redrive(ledger, "b")

    assert await ledger.state() is WorkflowState.CANCELED


async def test_redrive_counts_a_predecessor_once_whose_end_is_left_over(ledger: Ledger) -> None:
    flow = Workflow("fan")
    wide, bad = flow.task("work", name="wide"), flow.task("work", name="bad")
    for number in range(MOST_STEPS):
        flow.task("rest", name=f"n{number:04}", after=[wide])
    flow.task("sum", name="z", after=[wide, bad])
    await ledger.start(flow.definition())
    first = await take(ledger)
    await ledger.batch(ledger.finished(first["bad"], failed()))
    again = Asked(Verb.REDRIVE, {"workflow": "w", "node": "bad"})

    await ledger.batch(ledger.finished(first["wide"], completed(1)), again)
    meanwhile = await ledger.node("z")
    await ledger.batch(ledger.finished((await take(ledger))["bad"], completed(1)))

    assert (meanwhile.state, meanwhile.tally) == (TaskState.BLOCKED, Tally(2, 1, 1))
    assert (await ledger.node("z")).state is TaskState.PUBLISHED


@pytest.mark.parametrize("order", [Verb.REDRIVE, Verb.RESUME])
async def test_workflow_that_runs_again_is_live_until_it_ends_again(ledger: Ledger, order: Verb) -> None:
    async def live() -> list[str]:
        return await ledger.database.read(lambda tr: status.live(tr, 0))

    flow = Workflow("one")
    flow.task("work", name="one")
    await ledger.start(flow.definition())
    await ledger.play(lambda _: failed())
    ended = await live()

    await ledger.ask(order, {"workflow": "w", "node": "one"})
    meanwhile = await live()
    await ledger.play(lambda _: completed(1))

    assert (ended, meanwhile, await live()) == ([], ["w"], [])


async def half_redriven(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> dict[str, Publication]:
    """The node `a` runs again; that `y` waits for it again, and for `b`, is left over. Gives what was published."""
    monkeypatch.setattr(redrive_steps, "MOST_STEPS", 1)
    flow = Workflow("two")
    a, b = flow.task("work", name="a"), flow.task("work", name="b")
    flow.task("work", after=[After(a.name, OnFailure.ALLOW)], name="x")
    flow.task("work", after=[After(a.name, OnFailure.ALLOW), b], name="y")
    flow.task("work", after=[b], name="z")
    await ledger.start(flow.definition())
    first = await take(ledger)
    await ledger.batch(ledger.finished(first["a"], failed()))
    await take(ledger)
    ledger.goes_on = False
    await redrive(ledger, "a")
    return first | await take(ledger)


async def test_end_during_a_redrive_that_is_left_over_is_counted_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = await half_redriven(ledger, monkeypatch)

    await ledger.batch(ledger.finished(published["a"], completed(1)))
    early = await take(ledger)
    ledger.goes_on = True
    await ledger.go_on()
    waiting = await take(ledger)
    await ledger.batch(ledger.finished(published["b"], completed(1)))

    assert (early, waiting) == ({}, {})
    assert list(await take(ledger)) == ["y", "z"]


async def test_redrive_that_is_set_aside_holds_up_no_other_node(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = await half_redriven(ledger, monkeypatch)
    ledger.set_aside.add(TODO.pack((0, "w", ROOT, AGAIN)))

    await ledger.batch(ledger.finished(published["b"], completed(1)))

    assert "z" in await take(ledger)


async def test_redrive_leaves_a_paused_workflow_paused(ledger: Ledger) -> None:
    flow = Workflow("paused")
    flow.task("work", name="a")
    flow.task("work", after=[flow.task("work", name="b")], name="c")
    await ledger.start(flow.definition())
    first = await take(ledger)
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    await ledger.batch(ledger.finished(first["a"], failed()), ledger.finished(first["b"], completed(1)))

    await redrive(ledger, "a")
    meanwhile = await ledger.state(), list(ledger.published), ledger.seen[-1].notices
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(lambda _: completed(1))

    assert meanwhile == (WorkflowState.PAUSED, [], [])
    assert await ledger.state() is WorkflowState.COMPLETED


# -- maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"items": [1, 2]}, "is a list"), ("ab", "is a list"), (None, "is a list"), ([1] * 11, "longer than")],
)
async def test_input_of_a_map_is_a_list_within_its_limit(ledger: Ledger, given: Any, sentence: str) -> None:
    await ledger.start(one_map(), {"no": "list"})
    assert (await ledger.node("each")).reason == "expression"

    with pytest.raises(InputError, match=sentence):
        await redrive(ledger, "each", input=given)
    with pytest.raises(InputError, match=sentence):
        await redrive(ledger, "each", input=given, dry_run=True)
    await ledger.start(one_map(), [1, 2], workflow="other")
    await ledger.play(lambda _: completed(1))

    assert await ledger.state() is WorkflowState.FAILED
    assert await ledger.state("other") is WorkflowState.COMPLETED


async def test_map_without_elements_runs_again_from_a_list(ledger: Ledger) -> None:
    await ledger.start(one_map(), {"no": "list"})

    await redrive(ledger, "each", input=[{"n": 1}, {"n": 2}])
    inputs = {one.node_key.node: loads(one.task.body) for one in ledger.published}
    await ledger.play(lambda one: completed(one.node_key.node))

    assert inputs == {"each[0]": {"n": 1}, "each[1]": {"n": 2}}
    assert await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "each"), RESULT)) == ["each[0]", "each[1]"]
    assert (await ledger.run()).counts == {"completed": 3}


async def test_map_runs_again_from_an_empty_list(ledger: Ledger) -> None:
    await ledger.start(one_map(), {"no": "list"})

    await redrive(ledger, "each", input=[])

    assert await ledger.state() is WorkflowState.COMPLETED
    assert await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "each"), RESULT)) == []


async def test_map_that_has_elements_keeps_their_inputs(ledger: Ledger) -> None:
    await ledger.start(one_map(), [1, 2])
    await ledger.play(lambda one: completed(1) if one.node_key.node == "each[0]" else failed())

    with pytest.raises(InputError, match="keeps their inputs"):
        await redrive(ledger, "each", input=[3, 4])

    assert await ledger.state() is WorkflowState.FAILED


async def test_map_whose_elements_all_completed_ends_again(ledger: Ledger) -> None:
    await ledger.start(one_map(), [1, 2, 3, 4])
    await ledger.play(lambda _: completed("x" * (LARGEST_BYTES // 3)))
    before = (await ledger.node("each")).reason

    await redrive(ledger, "each")

    assert before == (await ledger.node("each")).reason == "result_too_large"
    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.run()).todo == 0


async def test_map_that_was_canceled_before_its_last_element_was_counted_has_its_list(ledger: Ledger) -> None:
    flow = Workflow("map")
    large = flow.task("work", name="large")
    for number in range(6):
        flow.task("rest", From("results.large"), after=[large], name=f"n{number}")
    flow.map("work", "input", {"n": From("item")}, limit=10, name="each")
    await ledger.start(flow.definition(), [1, 2])
    first = await take(ledger)
    await ledger.batch(ledger.finished(first["each[0]"], completed(1)))

    # the transaction is so large by then that what follows from the element's end is left over
    full, last = (
        ledger.finished(first["large"], completed("x" * 900_000)),
        ledger.finished(first["each[1]"], completed(2)),
    )
    await ledger.batch(full, last, Asked(Verb.CANCEL, {"workflow": "w"}))
    before = await ledger.node("each"), await ledger.node("each[1]")
    await redrive(ledger, "each")

    assert [row.state for row in before] == [TaskState.CANCELED, TaskState.COMPLETED]
    assert await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "each"), RESULT)) == [1, 2]
    assert await ledger.state() is WorkflowState.CANCELED


async def test_map_that_is_told_again_runs_its_elements_again(ledger: Ledger) -> None:
    flow = Workflow("told")
    before = flow.task("work", name="before")
    flow.map("work", "input", {"n": From("item")}, limit=10, after=[After(before.name, OnFailure.ALLOW)], name="each")
    await ledger.start(flow.definition(), [1, 2])
    await ledger.play(lambda one: completed(1) if one.node_key.node == "each[0]" else failed())
    fence = (await ledger.node("each[1]")).fence
    ran: list[str] = []

    def act(publication: Publication) -> Outcome:
        ran.append(publication.node_key.node)
        return completed(2)

    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(act)

    assert ran == ["before", "each[1]"]
    assert (await ledger.node("each[1]")).fence > fence
    assert (await ledger.run()).counts == {"completed": 4}
    assert await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "each"), RESULT)) == [1, 2]


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
    assert await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "each[0]"), FAILURE)) is None


async def test_approval_that_times_out_has_a_value_of_its_own(ledger: Ledger) -> None:
    flow = Workflow("gate")
    gate = flow.approval("ship it?", timeout="1h", on_timeout="grant", name="gate")
    flow.task("ship", after=[gate], when="results.gate.granted", name="ship")
    await ledger.start(flow.definition())
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "gate", "granted": False, "by": "ada"})
    await redrive(ledger, "gate")
    asked = await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "gate"), RESULT))

    await ledger.pass_time(3_601)
    await ledger.play(lambda _: completed(1))

    assert asked is None
    answer = await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "gate"), RESULT))
    assert answer == {"granted": True, "by": "timeout", "comment": ""}
    assert (await ledger.node("ship")).state is TaskState.COMPLETED


# -- its input ----------------------------------------------------------------------------------------------


async def both_failed(ledger: Ledger, definition: Definition) -> None:
    """The second node comes after the first whatever becomes of it, and both have failed."""
    await ledger.start(definition, {"path": "src"})
    await ledger.play(lambda _: failed())
    await redrive(ledger, "a")


async def test_input_of_a_node_that_waits_is_refused_where_its_expression_will_be_evaluated(ledger: Ledger) -> None:
    flow = Workflow("waits")
    flow.task("work", From("input"), after=[After(flow.task("work", name="a").name, OnFailure.ALLOW)], name="b")
    await both_failed(ledger, flow.definition())

    with pytest.raises(InputError, match="evaluated when its predecessors have ended"):
        await redrive(ledger, "b", input={"path": "tests"}, dry_run=True)
    with pytest.raises(InputError, match="evaluated when its predecessors have ended"):
        await redrive(ledger, "b", input={"path": "tests"})
    await ledger.batch(ledger.finished((await take(ledger))["a"], completed(1)))
    await redrive(ledger, "b", input={"path": "tests"})

    assert loads((await take(ledger))["b"].task.body) == {"path": "tests"}


async def test_input_of_a_node_that_waits_and_has_no_expression_is_what_it_runs_from(ledger: Ledger) -> None:
    flow = Workflow("waits")
    flow.task("work", {"path": "x"}, after=[After(flow.task("work", name="a").name, OnFailure.ALLOW)], name="b")
    await both_failed(ledger, flow.definition())

    await redrive(ledger, "b", input={"path": "tests"})
    await ledger.batch(ledger.finished((await take(ledger))["a"], completed(1)))

    assert loads((await take(ledger))["b"].task.body) == {"path": "tests"}


async def test_canceled_workflow_is_not_resumed_but_its_nodes_are_redriven(ledger: Ledger) -> None:
    flow = Workflow("chain")
    flow.task("work", after=[flow.task("work", name="a")], name="b")
    await ledger.start(flow.definition())
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})

    with pytest.raises(InputError, match="The workflow was canceled") as refused:
        await ledger.ask(Verb.RESUME, {"workflow": "w"})
    before = await ledger.state()
    await redrive(ledger, "a")

    assert "dead redrive" in str(refused.value.facts["fix"])
    assert (before, await ledger.state()) == (WorkflowState.CANCELED, WorkflowState.RUNNING)
