"""Work that is left over for later transactions: however often it is begun, the workflow ends when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from coditect import Workflow
from coditect.errors import InputError, Retryable
from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.workflow.definition import MOST_NAME_CHARACTERS
from coditect.workflow.documents.document import node_document
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Asked, GoOn, Show
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import AGAIN, TODO
from dispatcher.ledger.nodes.advance import EXPAND, MOST_STEPS
from dispatcher.ledger.workflows import redrive
from dispatcher.ledger.workflows.continuations import SetAside
from dispatcher.ledger.workflows.redrive import MOST_NAMED
from tests.unit.dispatcher.lone_ledger import READ_SECONDS, Ledger, SlowStore, completed, failed, few_steps

SMALLER = 5
"""Bounds and workflows are so many times smaller here, and the store is so many times slower."""
NODES = 1_200 // SMALLER
STEPS = MOST_STEPS // SMALLER
NAMED = MOST_NAMED // SMALLER


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch, STEPS)
    monkeypatch.setattr(redrive, "MOST_NAMED", NAMED)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    shortest, longest = READ_SECONDS
    async with SlowStore((SMALLER * shortest, SMALLER * longest)) as database:
        yield await Ledger.open(database)


async def test_workflow_that_is_shown_again_while_it_is_shown_ends_all_the_same(ledger: Ledger) -> None:
    flow = Workflow("wide")
    for number in range(SMALLER * NODES):
        flow.task("work", name=f"n{number}")
    await ledger.start(flow.definition())
    ledger.published.sort(key=lambda publication: publication.number)

    await ledger.batch(Show("w"), Show("w"))
    await ledger.batch(Show("w"), GoOn())
    await ledger.play(lambda _: completed(1))

    assert (await ledger.run()).todo == 0
    assert await ledger.state() is WorkflowState.COMPLETED


def fan_behind_one() -> Workflow:
    flow = Workflow("fan")
    first = flow.task("work", name="first")
    wide = [flow.task("work", name=f"n{number:03}", after=[first]) for number in range(NODES)]
    flow.task("sum", name="sum", after=wide)
    return flow


async def test_redrive_begins_while_the_node_s_end_is_told(prompt_ledger: Ledger) -> None:
    ledger = prompt_ledger
    again = Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"})
    await ledger.start(fan_behind_one().definition())
    (first,) = ledger.published
    ledger.published.clear()

    # the end and the redrive in one transaction: nothing of the rest is done between them
    _, dry, told, refused = await ledger.batch(
        ledger.finished(first, failed()), Asked(Verb.REDRIVE, {**again.body, "dry_run": True}), again, again
    )

    def act(publication: Publication) -> Outcome:
        return completed(publication.node_key.node)

    await ledger.play(act)

    assert told == dry | {"dry_run": False}
    assert (len(told["again"]), told["more"]) == (NAMED, True)
    assert isinstance(refused, InputError), "it is published by then"
    assert set((await ledger.states()).values()) == {TaskState.COMPLETED}
    assert await ledger.state() is WorkflowState.COMPLETED


async def failed_fan(ledger: Ledger) -> None:
    await ledger.start(fan_behind_one().definition())
    await ledger.play(lambda _: failed())
    assert await ledger.state() is WorkflowState.FAILED


async def test_another_redrive_waits_until_ends_are_taken_back(prompt_ledger: Ledger) -> None:
    ledger = prompt_ledger
    flow = fan_behind_one()
    flow.task("work", name="alone")
    await ledger.start(flow.definition())
    await ledger.play(lambda _: failed())
    asked = [Asked(Verb.REDRIVE, {"workflow": "w", "node": node}) for node in ("first", "alone")]

    told, refused = await ledger.batch(*asked)
    (again,) = await ledger.batch(asked[1])
    await ledger.play(lambda _: completed(1))

    assert told["more"]
    assert isinstance(refused, Retryable)
    assert refused.facts["fix"] == "try again in a moment"
    assert again["again"] == ["alone"]
    assert set((await ledger.states()).values()) == {TaskState.COMPLETED}


async def test_node_that_fails_again_before_its_end_is_taken_back_ends_everything_once(ledger: Ledger) -> None:
    await failed_fan(ledger)
    ledger.goes_on = False
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "first"})
    (first,) = ledger.published
    ledger.published.clear()

    await ledger.batch(ledger.finished(first, failed()))
    meanwhile = await ledger.state()
    while ledger.seen[-1].unfinished:
        await ledger.batch(GoOn())

    assert meanwhile is WorkflowState.RUNNING
    assert Counter((await ledger.states()).values()) == {TaskState.FAILED: NODES + 2}
    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.run()).lasts == {"failed": 1}


@pytest.mark.parametrize("verb", [Verb.REDRIVE, Verb.RESUME])
@pytest.mark.parametrize("batches", [0, 1, 2, 4])
async def test_cancel_while_ends_are_taken_back_ends_the_workflow_and_its_nodes_may_begin_again(
    ledger: Ledger, verb: Verb, batches: int
) -> None:
    await failed_fan(ledger)
    ledger.goes_on = False
    await ledger.ask(verb, {"workflow": "w", "node": "first"})
    for _ in range(batches):
        await ledger.batch(GoOn())

    ledger.goes_on = True
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    canceled = await ledger.state(), {state.terminal for state in (await ledger.states()).values()}
    left = await ledger.database.read(lambda tr: tr.get_range(*AGAIN.range()))
    ledger.published.clear()
    while ended := sorted(name for name, state in (await ledger.states()).items() if state is TaskState.CANCELED):
        for name in ended:
            with suppress(InputError):  # those that wait for one that comes first
                await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": name})
        await ledger.play(lambda _: completed(1))

    assert canceled == (WorkflowState.CANCELED, {True})
    assert left == []
    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: NODES + 2}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_many_nodes_that_failed_by_themselves_run_again_and_what_comes_after_all_of_them_once(
    ledger: Ledger,
) -> None:
    await ledger.start(fan_behind_one().definition())
    await ledger.play(lambda one: completed(1) if one.node_key.node == "first" else failed())

    told = await ledger.ask(Verb.RESUME, {"workflow": "w"})
    ran: list[str] = []

    def act(publication: Publication) -> Outcome:
        ran.append(publication.node_key.node)
        return completed(1)

    await ledger.play(act)

    assert told["more"]
    assert Counter(ran) == dict.fromkeys(("sum", *(f"n{number:03}" for number in range(NODES))), 1)
    assert ran[-1] == "sum"
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_few_failed_nodes_of_a_large_workflow_are_found(ledger: Ledger) -> None:
    await ledger.start(fan_behind_one().definition())
    bad = {"n220", "n239"}
    await ledger.play(lambda one: failed() if one.node_key.node in bad else completed(1))

    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    ran = {one.node_key.node for one in ledger.published}
    await ledger.play(lambda _: completed(1))

    assert ran == bad
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_answer_that_names_the_longest_nodes_fits_into_the_store(
    monkeypatch: pytest.MonkeyPatch, prompt_ledger: Ledger
) -> None:
    few_steps(monkeypatch, MOST_STEPS)
    monkeypatch.setattr(redrive, "MOST_NAMED", MOST_NAMED)
    flow = Workflow("long")
    first = flow.task("work", name="first")
    for number in range(MOST_NAMED + 1):
        flow.task("work", name=f"n{number:0{MOST_NAME_CHARACTERS - 1}}", after=[first])
    await prompt_ledger.start(flow.definition())
    await prompt_ledger.play(lambda _: failed())

    (told,) = await prompt_ledger.batch(Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"}, "identity"))

    assert (len(told["again"]), told["more"]) == (MOST_NAMED, True)


async def test_redrive_waits_for_the_end_of_a_cancel(ledger: Ledger) -> None:
    again = Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"})
    await ledger.start(fan_behind_one().definition())

    _, refused = await ledger.batch(Asked(Verb.CANCEL, {"workflow": "w"}), again)

    assert isinstance(refused, Retryable)
    assert await ledger.state() is WorkflowState.CANCELED
    assert set((await ledger.states()).values()) == {TaskState.CANCELED}


async def test_redrive_of_another_node_does_not_wait(ledger: Ledger) -> None:
    flow = fan_behind_one()
    flow.task("work", name="alone")
    await ledger.start(flow.definition())
    by_name = {one.node_key.node: one for one in ledger.published}
    await ledger.batch(ledger.finished(by_name["alone"], failed()))

    _, told = await ledger.batch(
        ledger.finished(by_name["first"], failed()), Asked(Verb.REDRIVE, {"workflow": "w", "node": "alone"})
    )

    assert told["again"] == ["alone"]


async def test_map_that_was_canceled_before_it_was_whole_runs_again_as_a_whole(ledger: Ledger) -> None:
    flow = Workflow("map")
    flow.map("work", "input", {"n": From("item")}, limit=NODES, name="each")
    (each,) = flow.definition().nodes
    body = {
        "workflow": "w",
        "name": "map",
        "input": [*range(NODES)],
        "count": 1,
        "nodes": {"each": node_document(each)},
    }

    # canceled in the very transaction that makes the first elements
    await ledger.batch(Asked(Verb.START, body), GoOn(), Asked(Verb.CANCEL, {"workflow": "w"}))
    canceled = await ledger.state(), Counter((await ledger.states()).values())
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "each"})
    await ledger.play(lambda _: completed(1))

    assert canceled == (WorkflowState.CANCELED, {TaskState.CANCELED: 1 + STEPS})
    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: 1 + NODES}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_large_value_for_many_dependents_is_released_in_several_transactions(ledger: Ledger) -> None:
    flow = Workflow("large")
    first = flow.task("work", name="first")
    wide = [flow.task("work", From("results.first"), name=f"n{number:02}", after=[first]) for number in range(18)]
    flow.task("sum", name="sum", after=wide)
    await ledger.start(flow.definition())
    value = "x" * 600_000

    await ledger.play(lambda one: completed(value if one.node_key.node == "first" else len(one.task.body)))

    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: 20}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_pages_of_dependents_are_bounded_by_bytes_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch, MOST_STEPS)
    flow, width = Workflow("pages"), 2 * SMALLER * NODES
    first = flow.task("work", name="first")
    for number in range(width):
        flow.task("work", From("results.first"), name=f"n{number:04}", after=[first])
    await ledger.start(flow.definition())
    (one,) = ledger.published
    ledger.published.clear()

    await ledger.batch(ledger.finished(one, completed("x" * 10_000)))

    assert len(ledger.published) == width
    assert (await ledger.run()).todo == 0


async def test_roots_that_take_a_large_input_are_released_in_several_transactions(ledger: Ledger) -> None:
    flow = Workflow("roots")
    for number in range(18):
        flow.task("work", From("input"), name=f"n{number:02}")

    await ledger.start(flow.definition(), "x" * 600_000)
    await ledger.play(lambda one: completed(len(one.task.body)))

    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: 18}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_what_cannot_be_done_keeps_nothing_else_of_the_shard_waiting(
    ledger: Ledger,
) -> None:
    flow = Workflow("map")
    flow.map("work", "input", {"n": From("item")}, limit=10, name="each")
    await ledger.start(flow.definition(), [1])
    await ledger.database.run(lambda tr: tr.set(TODO.pack((0, "w", "each", EXPAND)), b"no number"))

    with pytest.raises(SetAside) as refused:
        await ledger.start(flow.definition(), [1, 2], workflow="x")
    await ledger.batch(GoOn())  # as the shard worker does, for it may be retried
    await ledger.play(lambda _: completed(1))

    assert await ledger.state("x") is WorkflowState.COMPLETED
    assert not ledger.seen[-1].unfinished
    assert (refused.value.facts["workflow"], refused.value.facts["kind"]) == ("w", EXPAND)
    assert (refused.value.retryable, refused.value.overdue) == (True, False)


async def test_many_pieces_that_are_set_aside_keep_nothing_else_of_the_shard_waiting(ledger: Ledger) -> None:
    pieces = {TODO.pack((0, "a", f"each{number}", EXPAND)) for number in range(8)}
    for piece in pieces:
        await ledger.database.run(lambda tr, piece=piece: tr.set(piece, b"0"))  # type: ignore[misc]
    ledger.set_aside |= pieces
    flow = Workflow("map")
    flow.map("work", [1, 2], name="each")

    await ledger.start(flow.definition())
    await ledger.play(lambda _: completed(1))

    assert await ledger.state() is WorkflowState.COMPLETED
