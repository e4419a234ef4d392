"""What begins again, and what is undone: nodes, what comes after them, maps, and compensations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chaos.simulated_store import SimulatedDatabase
from coditect import Workflow
from coditect.errors import InputError
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.workflow.definition import After, Definition, From, Node, OnFailure
from coditect.workflow.states import Tally, TaskState, WorkflowState
from dispatcher.ledger import keyspace
from dispatcher.ledger.commands import Asked, Continue
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import COMPENSATE, CONTINUATIONS, RUNS, VALUES
from dispatcher.ledger.nodes.advance import AGAIN, MAX_DEPENDENTS, ROOT
from dispatcher.ledger.nodes.inputs import FAILURE, INPUT
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows import queries, redrive_steps, status
from dispatcher.ledger.workflows.redrive_steps import REDRIVABLE
from tests.unit.dispatcher.ledger.workflows.restored import Played
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, few_steps, one_map, some_graph, tasks


async def take(ledger: Ledger) -> dict[str, Publication]:
    """What was published since the last time, by node."""
    taken = {one.node_key.node: one for one in ledger.published}
    ledger.published.clear()
    return taken


async def redrive(ledger: Ledger, node: str, **more: Any) -> Any:
    return await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": node, **more})


# -- what comes after it ------------------------------------------------------------------------------------


async def test_redrive_counts_a_predecessor_once_whose_end_is_left_over(ledger: Ledger) -> None:
    dependents = {f"n{number:04}": "wide" for number in range(MAX_DEPENDENTS)}
    await ledger.start(tasks(wide="", bad="", **dependents, z="wide bad"))
    await ledger.end("bad", failed())
    again = Asked(Verb.REDRIVE, {"workflow": "w", "node": "bad"})

    await ledger.batch(ledger.finished(ledger.take("wide"), completed(1)), again)
    meanwhile = await ledger.node("z")
    await ledger.complete("bad")

    assert (meanwhile.state, meanwhile.tally) == (TaskState.BLOCKED, Tally(2, 1, 1))
    assert (await ledger.node("z")).state is TaskState.PUBLISHED


@pytest.mark.parametrize("order", [Verb.REDRIVE, Verb.RESUME])
async def test_workflow_that_runs_again_is_live_until_it_ends_again(ledger: Ledger, order: Verb) -> None:
    async def live() -> list[str]:
        return await ledger.database.read(lambda tr: status.live(tr, 0))

    await ledger.start_one()
    await ledger.play(lambda _: failed())
    ended = await live()

    await ledger.ask(order, {"workflow": "w", "node": "one"})
    meanwhile = await live()
    await ledger.play(lambda _: completed(1))

    assert (ended, meanwhile, await live()) == ([], ["w"], [])


async def half_redriven(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> dict[str, Publication]:
    """The node `a` runs again; that `y` waits for it again, and for `b`, is left over. Gives what was published."""
    monkeypatch.setattr(redrive_steps, "MAX_DEPENDENTS", 1)
    flow = Workflow("two")
    a, b = flow.task("work", name="a"), flow.task("work", name="b")
    flow.task("work", after=[After(a.name, OnFailure.ALLOW)], name="x")
    flow.task("work", after=[After(a.name, OnFailure.ALLOW), b], name="y")
    flow.task("work", after=[b], name="z")
    await ledger.start(flow)
    first = await take(ledger)
    await ledger.batch(ledger.finished(first["a"], failed()))
    await take(ledger)
    ledger.goes_on = False
    await redrive(ledger, "a")
    return first | await take(ledger)


@pytest.mark.parametrize("set_aside", [False, True])
async def test_end_during_a_redrive_that_is_left_over_is_counted_once_and_holds_up_no_other_node(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, set_aside: bool
) -> None:
    published = await half_redriven(ledger, monkeypatch)
    if set_aside:
        ledger.set_aside.add(CONTINUATIONS.pack((0, "w", ROOT, AGAIN)))
    else:
        await ledger.batch(ledger.finished(published["a"], completed(1)))
    early = await take(ledger)
    ledger.goes_on = not set_aside
    await ledger.go_on()
    waiting = await take(ledger)
    await ledger.batch(ledger.finished(published["b"], completed(1)))

    assert (early, waiting) == ({}, {})
    then = [*await take(ledger)]
    assert "z" in then
    assert set_aside or then == ["y", "z"]


async def test_redrive_leaves_a_paused_workflow_paused(ledger: Ledger) -> None:
    await ledger.start(tasks(a="", b="", c="b"))
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    await ledger.end("a", failed())
    await ledger.complete("b")

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


@pytest.mark.parametrize("items", [[], [{"n": 1}, {"n": 2}]])
async def test_map_without_elements_runs_again_from_a_list(ledger: Ledger, items: list[Any]) -> None:
    await ledger.start(one_map(), {"no": "list"})

    await redrive(ledger, "each", input=items)
    inputs = {one.node_key.node: loads(one.task.body) for one in ledger.published}
    await ledger.play(lambda one: completed(one.node_key.node))

    assert [*inputs.values()] == items
    assert await ledger.value("each") == [*inputs]
    assert (await ledger.run()).counts == {"completed": 1 + len(items)}


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
    await ledger.start(flow, [1, 2])
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
    assert await ledger.value("each") == [1, 2]
    assert await ledger.state() is WorkflowState.CANCELED


async def test_map_that_is_told_again_runs_its_elements_again(ledger: Ledger) -> None:
    flow = Workflow("told")
    before = flow.task("work", name="before")
    flow.map("work", "input", {"n": From("item")}, limit=10, after=[After(before.name, OnFailure.ALLOW)], name="each")
    await ledger.start(flow, [1, 2])
    await ledger.play(lambda one: completed(1) if one.node_key.node == "each[0]" else failed())
    fence = (await ledger.node("each[1]")).fence

    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    ran = await ledger.play(lambda _: completed(2))

    assert ran == ["before", "each[1]"]
    assert (await ledger.node("each[1]")).fence > fence
    assert (await ledger.run()).counts == {"completed": 4}
    assert await ledger.value("each") == [1, 2]
    assert await told(ledger, "each[1]") == ("completed", "", "")
    assert await ledger.value("each[1]", FAILURE) is None


# -- values of an earlier life ------------------------------------------------------------------------------


async def told(ledger: Ledger, node: str) -> tuple[str, str, str]:
    nodes = await ledger.read(queries.nodes, workflow="w")
    return next((row["state"], row["reason"], row["message"]) for row in nodes["nodes"] if row["name"] == node)


async def test_failure_of_an_earlier_life_stands_in_its_attempt_alone(ledger: Ledger) -> None:
    await ledger.start(tasks(a="", b=""))
    await ledger.play(lambda _: failed())
    before = await told(ledger, "a")

    await redrive(ledger, "a")
    await ledger.play(lambda _: completed(1))
    await redrive(ledger, "b")
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    attempts = (await ledger.read(queries.attempts, workflow="w", node="a"))["attempts"]

    assert before == ("failed", "handler_error", "no")
    assert await told(ledger, "a") == ("completed", "", "")
    assert await told(ledger, "b") == ("canceled", "canceled", "")
    assert [(row["status"], row["message"]) for row in attempts] == [("failed", "no"), ("completed", "")]


async def test_approval_that_times_out_has_a_value_of_its_own(ledger: Ledger) -> None:
    flow = Workflow("gate")
    gate = flow.approval("ship it?", timeout="1h", on_timeout="grant", name="gate")
    flow.task("ship", after=[gate], when="results.gate.granted", name="ship")
    await ledger.start(flow)
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "gate", "granted": False, "by": "ada"})
    await redrive(ledger, "gate")
    asked = await ledger.value("gate")

    await ledger.pass_time(3_601)
    await ledger.play(lambda _: completed(1))

    assert asked is None
    assert await ledger.value("gate") == {"granted": True, "by": "timeout", "comment": ""}
    assert (await ledger.node("ship")).state is TaskState.COMPLETED


# -- its input ----------------------------------------------------------------------------------------------


async def test_a_plan_names_what_ended_because_of_the_node_and_not_what_failed_by_itself(ledger: Ledger) -> None:
    flow = Workflow("plan")
    root = flow.task("work", name="a")
    flow.task("work", name="skipped", after=[root])
    flow.task("work", name="ran", after=[After(root.name, OnFailure.ALLOW)])
    await ledger.start(flow)
    await ledger.play(lambda _: failed())

    assert (await redrive(ledger, "a", dry_run=True))["again"] == ["a", "skipped"]


@pytest.mark.parametrize("template", [From("input"), {"path": "x"}], ids=["expression", "plain"])
async def test_input_of_a_node_that_waits_for_its_expression_is_refused(ledger: Ledger, template: Any) -> None:
    flow = Workflow("waits")
    flow.task("work", template, after=[After(flow.task("work", name="a").name, OnFailure.ALLOW)], name="b")
    await ledger.start(flow, {"path": "src"})
    await ledger.play(lambda _: failed())
    await redrive(ledger, "a")
    (first,) = (await take(ledger)).values()
    if isinstance(template, From):
        for dry_run in (True, False):
            with pytest.raises(InputError, match="evaluated when its predecessors have ended"):
                await redrive(ledger, "b", input={"path": "tests"}, dry_run=dry_run)
        await ledger.batch(ledger.finished(first, completed(1)))
        await redrive(ledger, "b", input={"path": "tests"})
    else:
        await redrive(ledger, "b", input={"path": "tests"})
        await ledger.batch(ledger.finished(first, completed(1)))

    assert loads((await take(ledger))["b"].task.body) == {"path": "tests"}


async def test_canceled_workflow_is_not_resumed_but_its_nodes_are_redriven(ledger: Ledger) -> None:
    await ledger.start(tasks(a="", b="a"))
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})

    with pytest.raises(InputError, match="The workflow was canceled") as refused:
        await ledger.ask(Verb.RESUME, {"workflow": "w"})
    with pytest.raises(InputError, match="comes after ended without a value"):
        await redrive(ledger, "b")
    before = await ledger.state()
    await redrive(ledger, "a")

    assert "dead redrive" in str(refused.value.facts["fix"])
    assert (before, await ledger.state()) == (WorkflowState.CANCELED, WorkflowState.RUNNING)


async def failed_with_an_input(ledger: Ledger) -> None:
    flow = Workflow("two")
    first = flow.task("work", From("input"), name="a")
    flow.task("work", after=[first], name="b")
    await ledger.start(flow, 7)
    await ledger.play(lambda _: failed())


async def damage(ledger: Ledger, kind: str) -> bytes:
    """The value of the node `a`, as it was."""
    key = VALUES.pack(("w", "a", kind))
    was = await ledger.database.read(lambda tr: tr.get(key))
    assert was is not None
    await ledger.database.run(lambda tr: tr.set(key, was[:-1] + b"?\0"))
    return was


@pytest.mark.parametrize("verb", [Verb.REDRIVE, Verb.RESUME])
@pytest.mark.parametrize("kind", [FAILURE, INPUT])
async def test_nothing_begins_anew_by_halves_when_a_value_is_damaged(ledger: Ledger, kind: str, verb: Verb) -> None:
    asked = Asked(verb, {"workflow": "w", "node": "a"}, "i")
    await failed_with_an_input(ledger)
    was = await damage(ledger, kind)
    before = await ledger.everything()

    with pytest.raises(DamagedValue, match=kind):
        await ledger.batch(asked)
    refused = await ledger.everything()
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
    run.redriving = True
    await ledger.database.run(lambda tr: tr.set(RUNS.pack(("w",)), run.pack()))
    await ledger.database.run(lambda tr: tr.set(keyspace.AGAIN.pack(("w", 0, "a")), b""))

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    canceled = await ledger.state()
    left = await ledger.rows(keyspace.AGAIN)
    ledger.published.clear()
    for node in ("a", "b"):
        await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": node})
        await ledger.play(lambda _: completed(1))

    assert canceled is WorkflowState.CANCELED
    assert left == []
    assert await ledger.state() is WorkflowState.COMPLETED


async def check_tallies(ledger: Ledger, definition: Definition) -> None:
    """Whoever waits has counted exactly those ends that there are, once nothing is left over."""
    states, run = await ledger.states(), await ledger.run()
    assert run.counts == Counter(states.values())
    assert run.open == sum(not state.terminal for state in states.values())
    if run.todo:
        return
    assert not run.redriving
    before = {edge.node for node in definition.nodes for edge in node.after}
    lasts = Counter(state.value for name, state in states.items() if name not in before and state.terminal)
    assert +Counter(run.lasts) == lasts
    for node in definition.nodes:
        row = await ledger.node(node.name)
        if row.state is TaskState.BLOCKED:
            assert row.tally == tally_of(node, states)
            assert row.tally.open > 0
            assert row.tally.decision is not TaskState.READY


def tally_of(node: Node, states: dict[str, TaskState]) -> Tally:
    tally = Tally.of(node)
    for edge in node.after:
        if states[edge.node].terminal:
            tally = tally.with_end(edge.on_failure, states[edge.node])
    return tally


async def check_published(ledger: Ledger, definition: Definition, known: int) -> None:
    """What was published since then was let run by its predecessors."""
    states = await ledger.states()
    nodes = {node.name: node for node in definition.nodes}
    for one in ledger.published[known:]:
        assert tally_of(nodes[one.node_key.node], states).decision is TaskState.READY


async def some_step(ledger: Ledger, random: Random, *, pauses: bool) -> None:
    ended = [name for name, state in (await ledger.states()).items() if state in REDRIVABLE]
    draw = random.random()
    if draw < 0.25:
        await ledger.batch(Continue())
    elif draw < 0.5 and ended:
        await ledger.batch(Asked(Verb.REDRIVE, {"workflow": "w", "node": random.choice(ended)}))
    elif ledger.published:
        one = ledger.published.pop(random.randrange(len(ledger.published)))
        await ledger.batch(ledger.finished(one, random.choice([completed(), failed()])))
    elif (await ledger.state()) is not WorkflowState.COMPLETED:
        await ledger.batch(Asked(Verb.RESUME, {"workflow": "w"}))
    if random.random() < 0.1:
        verbs = [Verb.CANCEL, Verb.RESUME, *([Verb.PAUSE, Verb.RESUME] if pauses else [])]
        await ledger.batch(Asked(random.choice(verbs), {"workflow": "w"}))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, MAX_DEPENDENTS]), st.booleans(), st.booleans())
@example(0, 2, True, False)  # a node may run when its workflow has been canceled
@example(2, 1, False, False)  # an attempt fails when its workflow has been canceled
async def test_whoever_waits_has_counted_what_has_ended(seed: int, steps: int, goes_on: bool, pauses: bool) -> None:
    random = Random(seed)
    definition = some_graph(random)
    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database)
        with pytest.MonkeyPatch.context() as patched:
            few_steps(patched, steps)
            await ledger.start(definition)
            ledger.goes_on = goes_on
            for _ in range(80):
                known = len(ledger.published)
                await some_step(ledger, random, pauses=pauses)
                await check_tallies(ledger, definition)
                if not pauses and len(ledger.published) > known:
                    await check_published(ledger, definition, known)
            ledger.goes_on = True
            await ledger.batch(Continue())
            if (await ledger.state()) is WorkflowState.PAUSED:
                await ledger.batch(Asked(Verb.RESUME, {"workflow": "w"}))
            await ledger.play(lambda _: completed(), pick=lambda waiting: random.randrange(len(waiting)))
        await check_tallies(ledger, definition)

        assert (await ledger.state()).terminal
        assert (await ledger.run()).todo == 0
        assert await ledger.rows(keyspace.AGAIN) == []


def chain() -> Workflow:
    flow = Workflow("trip")
    hotel = flow.task("hotel.book", {"nights": 2}, name="hotel", compensate="hotel.cancel")
    plain = flow.task("note.write", name="note", after=[hotel])
    flight = flow.task("flight.book", {"room": From("results.hotel")}, name="flight", after=[hotel], compensate="undo")
    flow.task("card.charge", name="card", after=[plain, flight], compensate="card.refund")
    return flow


fails = partial(Played, tells=" is done")


async def test_completed_nodes_are_undone_in_reverse_order_when_a_node_fails(ledger: Ledger) -> None:
    await ledger.start(chain())
    played = fails("card")
    await ledger.play(played)
    told = await ledger.read(queries.result, workflow="w")

    assert played.order[-2:] == ["flight.compensate", "hotel.compensate"]
    assert await ledger.state() is WorkflowState.COMPENSATED
    assert (await ledger.run()).ended is WorkflowState.FAILED
    assert (told["state"], told["failure"]["node"]) == ("failed", "card")
    assert played.inputs["hotel.compensate"] == {"input": {"nights": 2}, "result": "hotel is done"}
    assert played.inputs["flight.compensate"] == {"input": {"room": "hotel is done"}, "result": "flight is done"}
    assert "card.compensate" not in await ledger.states()
    assert await ledger.rows(COMPENSATE, "w") == []
    for verb in (Verb.REDRIVE, Verb.RESUME):
        with pytest.raises(InputError, match="compensated"):
            await ledger.ask(verb, {"workflow": "w", "node": "card"})


@pytest.mark.parametrize("verb", [Verb.REDRIVE, Verb.RESUME])
async def test_failed_compensation_ends_the_workflow_until_it_begins_again(ledger: Ledger, verb: Verb) -> None:
    await ledger.start(chain())
    await ledger.play(fails("card", "flight.compensate"))
    before, played = await ledger.state(), fails()

    await ledger.ask(verb, {"workflow": "w", "node": "flight.compensate"})
    await ledger.play(played)

    assert before is WorkflowState.COMPENSATION_FAILED
    assert played.order == ["flight.compensate", "hotel.compensate"]
    assert await ledger.state() is WorkflowState.COMPENSATED


async def test_failed_attempt_of_a_compensation_is_followed_by_another(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.complete("hotel", "note", "flight")
    await ledger.end("card", failed())
    first = ledger.published.pop()

    await ledger.batch(ledger.finished(first, replace(failed(retryable=True), retry_ms=700)))
    await ledger.pass_time(60)
    again = ledger.published.pop()

    assert first.node_key == again.node_key
    assert again.task.attempt == 2
    assert again.task.owner is not None and first.task.owner is not None
    assert again.task.owner.fence > first.task.owner.fence


async def test_cancel_compensates_what_has_completed_unless_it_says_otherwise(ledger: Ledger) -> None:
    played = fails()
    for workflow in ("w", "without"):
        await ledger.start(chain(), workflow=workflow)
        await ledger.complete("hotel")
    ledger.published.clear()
    await ledger.ask(Verb.CANCEL, {"workflow": "without", "compensate": False})
    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "rain"})
    await ledger.play(played)

    assert played.order == ["hotel.compensate"]
    run = await ledger.run()
    assert (run.state, run.ended, run.reason) == (WorkflowState.COMPENSATED, WorkflowState.CANCELED, "rain")
    assert await ledger.state("without") is WorkflowState.CANCELED
    assert "hotel.compensate" not in await ledger.states("without")


async def test_only_a_cancel_without_compensation_ends_a_compensation_under_way(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.complete("hotel")
    states = []
    for compensate in (True, True, False):
        await ledger.ask(Verb.CANCEL, {"workflow": "w", "compensate": compensate})
        states.append(await ledger.state())

    assert states == [WorkflowState.COMPENSATING] * 2 + [WorkflowState.COMPENSATION_FAILED]
    assert (await ledger.node("hotel.compensate")).state is TaskState.CANCELED


async def test_completed_elements_of_a_map_are_compensated_one_by_one(ledger: Ledger) -> None:
    flow = Workflow("rooms")
    flow.map("room.book", "input", From("item"), limit=9, name="rooms", compensate="room.cancel")
    await ledger.start(flow, [7, 8, 9])
    played = fails("rooms[1]")

    await ledger.play(played, pick=lambda _: 0)

    assert played.order == ["rooms[0]", "rooms[1]", "rooms[2]", "rooms[2].compensate", "rooms[0].compensate"]
    assert played.inputs["rooms[2].compensate"] == {"input": 9, "result": "rooms[2] is done"}


async def test_row_of_a_node_names_the_capability_that_it_calls_and_no_question(ledger: Ledger) -> None:
    flow = Workflow("asked")
    first = flow.task("room.book", name="first", compensate="room.cancel")
    flow.approval("Go?", name="go", after=[first])
    await ledger.start(flow)
    await ledger.complete("first")
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "go", "granted": False, "by": "ada"})

    told = await ledger.read(queries.nodes, workflow="w")

    assert {one["name"]: one["capability"] for one in told["nodes"]} == {
        "first": "room.book",
        "first.compensate": "room.cancel",
        "go": None,
    }
