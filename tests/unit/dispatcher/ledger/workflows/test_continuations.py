"""Work that is left over for later transactions: however often it is begun, the workflow ends when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from coditect import Workflow
from coditect.errors import InputError, Retryable
from coditect.wire.control import Verb
from coditect.workflow.definition import MOST_NAME_CHARACTERS, From
from coditect.workflow.documents.document import node_document
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Asked, Continue, Show
from dispatcher.ledger.keyspace import AGAIN, CONTINUATIONS
from dispatcher.ledger.nodes.advance import EXPAND, MAX_DEPENDENTS
from dispatcher.ledger.workflows import redrive
from dispatcher.ledger.workflows.continuations import SetAside
from dispatcher.ledger.workflows.redrive import MAX_REDRIVEN_NAMED
from tests.unit.dispatcher.lone_ledger import (
    READ_SECONDS,
    Ledger,
    SlowStore,
    completed,
    failed,
    few_steps,
    one_map,
    tasks,
    wide,
)

SMALLER = 5
"""Bounds and workflows are so many times smaller here, and the store is so many times slower."""
NODES = 1_200 // SMALLER
STEPS = MAX_DEPENDENTS // SMALLER
NAMED = MAX_REDRIVEN_NAMED // SMALLER


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch, STEPS)
    monkeypatch.setattr(redrive, "MAX_REDRIVEN_NAMED", NAMED)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    shortest, longest = READ_SECONDS
    async with SlowStore((SMALLER * shortest, SMALLER * longest)) as database:
        yield await Ledger.open(database)


async def test_workflow_that_is_shown_again_while_it_is_shown_ends_all_the_same(ledger: Ledger) -> None:
    await ledger.start(wide(SMALLER * NODES))
    ledger.published.sort(key=lambda publication: publication.number)

    await ledger.batch(Show("w"), Show("w"))
    await ledger.batch(Show("w"), Continue())
    await ledger.play(lambda _: completed(1))

    assert (await ledger.run()).todo == 0
    assert await ledger.state() is WorkflowState.COMPLETED


def fan_behind_one(**more: str) -> Workflow:
    wide = {f"n{number:03}": "first" for number in range(NODES)}
    return tasks(first="", **wide, sum=" ".join(wide), **more)


async def test_redrive_begins_while_the_node_s_end_is_told(prompt_ledger: Ledger) -> None:
    ledger = prompt_ledger
    again = Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"})
    await ledger.start(fan_behind_one(alone=""))
    await ledger.end("alone", failed())
    # the end and the redrives in one transaction: nothing of the rest is done between them
    _, dry, other, told, refused = await ledger.batch(
        ledger.finished(ledger.take("first"), failed()),
        Asked(Verb.REDRIVE, {**again.body, "dry_run": True}),
        Asked(Verb.REDRIVE, {"workflow": "w", "node": "alone"}),
        again,
        again,
    )
    await ledger.play(lambda _: completed(1))

    assert other["again"] == ["alone"]
    assert told == dry | {"dry_run": False}
    assert (len(told["again"]), told["more"]) == (NAMED, True)
    assert isinstance(refused, InputError), "it is published by then"
    assert set((await ledger.states()).values()) == {TaskState.COMPLETED}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_redrive_waits_for_the_end_of_a_cancel(ledger: Ledger) -> None:
    again = Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"})
    await ledger.start(fan_behind_one())
    _, refused = await ledger.batch(Asked(Verb.CANCEL, {"workflow": "w"}), again)

    assert isinstance(refused, Retryable)
    assert await ledger.state() is WorkflowState.CANCELED
    assert set((await ledger.states()).values()) == {TaskState.CANCELED}


async def failed_fan(ledger: Ledger) -> None:
    await ledger.start(fan_behind_one())
    await ledger.play(lambda _: failed())
    assert await ledger.state() is WorkflowState.FAILED


async def test_another_redrive_waits_until_ends_are_taken_back(prompt_ledger: Ledger) -> None:
    ledger = prompt_ledger
    await ledger.start(fan_behind_one(alone=""))
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
    await ledger.end("first", failed())
    meanwhile = await ledger.state()
    while ledger.seen[-1].unfinished:
        await ledger.batch(Continue())

    assert meanwhile is WorkflowState.RUNNING
    assert Counter((await ledger.states()).values()) == {TaskState.FAILED: NODES + 2}
    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.run()).lasts == {"failed": 1}


@pytest.mark.parametrize("verb", [Verb.REDRIVE, Verb.RESUME])
@pytest.mark.parametrize("batches", [0, 2])
async def test_cancel_while_ends_are_taken_back_ends_the_workflow(ledger: Ledger, verb: Verb, batches: int) -> None:
    await failed_fan(ledger)
    ledger.goes_on = False
    await ledger.ask(verb, {"workflow": "w", "node": "first"})
    for _ in range(batches):
        await ledger.batch(Continue())

    ledger.goes_on = True
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    canceled = await ledger.state(), {state.terminal for state in (await ledger.states()).values()}
    left = await ledger.rows(AGAIN)
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


@pytest.mark.parametrize("failing", [[*range(NODES)], [220, 239]], ids=["all", "few"])
async def test_nodes_that_failed_run_again_and_what_follows_them_once(ledger: Ledger, failing: list[int]) -> None:
    bad = {f"n{number:03}" for number in failing}
    await ledger.start(fan_behind_one())
    await ledger.play(lambda one: failed() if one.node_key.node in bad else completed(1))
    told = await ledger.ask(Verb.RESUME, {"workflow": "w"})
    ran = await ledger.play(lambda _: completed(1))

    assert told["more"]
    assert Counter(ran) == dict.fromkeys(("sum", *bad), 1)
    assert ran[-1] == "sum"
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_answer_with_the_longest_names_is_kept(monkeypatch: pytest.MonkeyPatch, prompt_ledger: Ledger) -> None:
    few_steps(monkeypatch, MAX_DEPENDENTS)
    monkeypatch.setattr(redrive, "MAX_REDRIVEN_NAMED", MAX_REDRIVEN_NAMED)
    names = [f"n{number:0{MOST_NAME_CHARACTERS - 1}}" for number in range(MAX_REDRIVEN_NAMED + 1)]
    await prompt_ledger.start(tasks(first="", **dict.fromkeys(names, "first")))
    await prompt_ledger.play(lambda _: failed())

    (told,) = await prompt_ledger.batch(Asked(Verb.REDRIVE, {"workflow": "w", "node": "first"}, "identity"))

    assert (len(told["again"]), told["more"]) == (MAX_REDRIVEN_NAMED, True)


async def test_map_that_was_canceled_before_it_was_whole_runs_again_as_a_whole(ledger: Ledger) -> None:
    (each,) = one_map(NODES).definition().nodes
    nodes = {"each": node_document(each)}
    body = {"workflow": "w", "name": "map", "input": [*range(NODES)], "count": 1, "nodes": nodes}

    # canceled in the very transaction that makes the first elements
    await ledger.batch(Asked(Verb.START, body), Continue(), Asked(Verb.CANCEL, {"workflow": "w"}))
    canceled = await ledger.state(), Counter((await ledger.states()).values())
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "each"})
    await ledger.play(lambda _: completed(1))

    assert canceled == (WorkflowState.CANCELED, {TaskState.CANCELED: 1 + STEPS})
    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: 1 + NODES}
    assert await ledger.state() is WorkflowState.COMPLETED


@pytest.mark.parametrize(("width", "size"), [(18, 600_000), (SMALLER * NODES, 10_000)], ids=["large", "many"])
async def test_large_input_is_released(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, width: int, size: int) -> None:
    few_steps(monkeypatch, MAX_DEPENDENTS)
    flow = Workflow("large")
    first = flow.task("work", name="first")
    for number in range(width):
        flow.task("work", From("results.first"), name=f"n{number:04}", after=[first])
    await ledger.start(flow)
    await ledger.end("first", completed("x" * size))

    assert len(ledger.published) == width
    assert (await ledger.run()).todo == 0


async def test_what_cannot_be_done_keeps_nothing_else_of_the_shard_waiting(ledger: Ledger) -> None:
    await ledger.start(one_map(), [1])
    await ledger.database.run(lambda tr: tr.set(CONTINUATIONS.pack((0, "w", "each", EXPAND)), b"no number"))
    with pytest.raises(SetAside) as refused:
        await ledger.start(one_map(), [1, 2], workflow="x")
    for number in range(8):  # many others were set aside before
        piece = CONTINUATIONS.pack((0, "a", f"each{number}", EXPAND))
        await ledger.database.run(lambda tr, piece=piece: tr.set(piece, b"0"))  # type: ignore[misc]
        ledger.set_aside.add(piece)
    await ledger.batch(Continue())  # as the shard worker does, for it may be retried
    await ledger.play(lambda _: completed(1))

    assert await ledger.state("x") is WorkflowState.COMPLETED
    assert not ledger.seen[-1].unfinished
    assert (refused.value.facts["workflow"], refused.value.facts["kind"]) == ("w", EXPAND)
    assert (refused.value.retryable, refused.value.overdue) == (True, False)
