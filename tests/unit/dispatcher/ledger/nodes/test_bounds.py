"""What a node's expressions may cost: beyond it the node fails, and nobody else waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Workflow
from coditect.wire.control import Verb
from coditect.workflow.definition import MOST_ELEMENTS, Definition
from coditect.workflow.documents.document import node_document
from coditect.workflow.expressions import MOST_STEPS
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import unit_of_work, values, versions
from dispatcher.ledger.commands import Evaluated, Fill, Look, Proposed, Show
from dispatcher.ledger.definitions import Definitions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import ValueBeyondBound
from dispatcher.ledger.keyspace import VALUES
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.inputs import FAILURE, INPUT, MOST_SEEN_BYTES, RESULT, Inputs, gathered, value_of
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows.control import MOST_COMMENT
from tests.unit.dispatcher.lone_ledger import Ledger, SlowMachine, completed

MEGABYTE = "x" * 1_000_000


async def failure(ledger: Ledger, node: str) -> dict[str, str]:
    """Why the node failed."""
    assert (await ledger.states())[node] is TaskState.FAILED
    told = await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", node), FAILURE))
    assert told["reason"] == (await ledger.node(node)).reason
    return dict(told)


def test_a_list_is_taken_no_further_than_it_may_be_long() -> None:
    taken = 0

    def bodies() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 300_000

    with pytest.raises(ValueBeyondBound, match="too large"):
        gathered(bodies())

    assert taken == 4


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_a_list_is_taken_to_the_last_byte(spare: int, fits: bool) -> None:
    bodies = [b"x" * 1_000_000, b"x" * (LARGEST_BYTES - 1_000_000 - 3 - spare)]

    try:
        assert gathered(bodies) == bodies
    except ValueBeyondBound:
        assert not fits
    else:
        assert fits


async def test_a_map_that_gives_a_large_input_to_each_element_fails_at_once(ledger: Ledger) -> None:
    flow = Workflow("map")
    template = {"item": From("item"), "context": From("input.context")}
    flow.map("work", "input.items", template, limit=MOST_ELEMENTS, name="each")

    await ledger.start(flow.definition(), {"items": [*range(5_000)], "context": "x" * 500_000})

    told = await failure(ledger, "each")
    assert (told["reason"], told["type"]) == ("too_large", "ValueBeyondBound")
    assert told["fix"] == "use references in place of values: a URL, a path"


async def test_the_elements_of_a_map_share_one_account(ledger: Ledger) -> None:
    flow = Workflow("map")
    flow.map("work", "input.items", {"n": From("length(input.items)")}, limit=MOST_ELEMENTS, name="each")

    await ledger.start(flow.definition(), {"items": [*range(5_000)]})

    told = await failure(ledger, "each")
    assert told["reason"] == "expression"
    assert "too many steps" in told["message"]


@pytest.fixture
async def slow_machine() -> AsyncIterator[Ledger]:
    async with SlowMachine() as database:
        yield await Ledger.open(database)


async def test_a_map_of_the_most_elements_with_some_expressions_in_each_is_within_its_account(
    slow_machine: Ledger,
) -> None:
    ledger = slow_machine
    flow = Workflow("map")
    template = {f"f{number}": From(f"item.{name}") for number, name in enumerate("abcab")}
    flow.map("work", "input", template, limit=MOST_ELEMENTS, name="each")

    await ledger.start(flow.definition(), [{"a": 1, "b": "two", "c": [3, 4]}] * MOST_ELEMENTS)

    assert (await ledger.run()).counts == {"working": 1, "published": MOST_ELEMENTS}
    assert ledger.database.repeated <= 5  # none on a quiet machine; a busy one does less in the same time


STEPS_OF_EACH = 60
"""A little more than the expressions below take for each of the numbers."""


@settings(max_examples=4, deadline=None)
@given(numbers=st.integers(100, MOST_STEPS // STEPS_OF_EACH), nodes=st.integers(1, 4))
async def test_whatever_is_within_the_account_is_evaluated_on_a_machine_ten_times_slower(
    numbers: int, nodes: int
) -> None:
    flow = Workflow("conditions")
    for number in range(nodes):
        flow.task("work", {"n": From("length(input)")}, name=f"n{number}", when="length(input[?@ > `1`]) > `5`")
    async with SlowMachine() as database:
        ledger = await Ledger.open(database)

        await ledger.start(flow.definition(), [*range(numbers)])
        await ledger.play(lambda _: completed())

        assert await ledger.state() is WorkflowState.COMPLETED
        assert database.repeated == 0


async def test_what_is_evaluated_meanwhile_may_be_canceled_or_left_to_the_next_owner(ledger: Ledger) -> None:
    flow = Workflow("slow")
    flow.task("work", name="slow", when="length(input[?@ > `1`]) > `5`")
    ledger.evaluates = False
    for workflow in ("canceled", "taken"):
        await ledger.start(flow.definition(), [*range(30_000)], workflow=workflow)
    await ledger.ask(Verb.CANCEL, {"workflow": "canceled"})
    meanwhile = await ledger.state("canceled"), await ledger.state("taken")

    ledger.set_aside.clear()  # another process, which remembers nothing
    ledger.evaluates = True
    await ledger.go_on()

    assert meanwhile == (WorkflowState.RUNNING, WorkflowState.RUNNING)
    assert await ledger.state("canceled") is WorkflowState.CANCELED
    assert (await ledger.states("taken"))["slow"] is TaskState.PUBLISHED
    assert (await ledger.run("taken")).todo == 0


async def test_what_was_evaluated_for_another_beginning_is_not_taken(ledger: Ledger) -> None:
    flow = Workflow("slow")
    flow.task("work", name="slow", when="length(input[?@ > `1`]) > `5`")
    ledger.evaluates = False
    await ledger.start(flow.definition(), [*range(30_000)])

    await ledger.batch(Evaluated(NodeKey("w", "slow"), "another", Inputs(False)))

    assert (await ledger.states())["slow"] is TaskState.BLOCKED


def gathering(width: int, **fields: str) -> Definition:
    flow = Workflow("gathering")
    before = [flow.task("work", name=f"n{number}") for number in range(width)]
    flow.task("sum", {"n": From("length(results)")}, name="sum", after=before, **fields)  # type: ignore[arg-type]
    return flow.definition()


@pytest.mark.parametrize("fields", [{}, {"when": "states.n1 == 'completed'"}])
async def test_a_node_that_sees_too_much_fails_and_says_what_to_do(ledger: Ledger, fields: dict[str, str]) -> None:
    width = MOST_SEEN_BYTES // len(MEGABYTE)
    await ledger.start(gathering(width + 1, **fields))

    await ledger.play(lambda _: completed(MEGABYTE))

    told = await failure(ledger, "sum")
    assert (told["reason"], told["fix"]) == (
        "too_large",
        "return references in place of large values, or let the node come after fewer",
    )


async def test_a_node_may_see_eight_mebibytes(ledger: Ledger) -> None:
    await ledger.start(gathering(MOST_SEEN_BYTES // len(MEGABYTE)))

    await ledger.play(lambda one: completed(MEGABYTE if one.node_key.node != "sum" else None))

    assert await ledger.state() is WorkflowState.COMPLETED


async def test_the_values_of_a_map_are_read_no_further_than_its_list_may_be_long(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "PAGE", 2)
    flow = Workflow("map")
    flow.map("work", "input", limit=10, name="each")
    await ledger.start(flow.definition(), [*range(10)])
    behind = values.ValueKey("w", "each[4]", RESULT)

    last = ledger.published.pop(0)
    await ledger.play(lambda _: completed("x" * 500_000))
    await ledger.database.run(
        lambda tr: tr.set(VALUES.pack(behind.key), versions.VALUE.pack((7, b"\0" * 32, b"damaged")))
    )
    await ledger.batch(ledger.finished(last, completed("x" * 500_000)))

    assert (await failure(ledger, "each"))["reason"] == "result_too_large"


async def test_dependents_whose_expressions_cost_much_are_released_in_several_transactions(ledger: Ledger) -> None:
    flow = Workflow("fan")
    first = flow.task("work", name="first")
    count = From("length(results.first)")  # 100,000 numbers are weighed twice over
    for number in range(40):
        flow.task("work", {"n": count}, name=f"n{number:02}", after=[first])
    await ledger.start(flow.definition())
    (one,) = ledger.published
    ledger.published, ledger.seen = [], []

    await ledger.batch(ledger.finished(one, completed([1] * 100_000)))

    batches = [len(effects.publications) for effects in ledger.seen if effects.publications]
    assert sum(batches) == 40
    assert max(batches) <= unit_of_work.MOST_STEPS // 200_000 + 1
    await ledger.play(lambda _: completed())
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_to_read_large_values_counts_for_a_transaction_too(ledger: Ledger) -> None:
    flow = Workflow("fan")
    first = flow.task("work", name="first")
    for number in range(300):
        flow.task("work", {"n": From("states.first")}, name=f"n{number:03}", after=[first])
    await ledger.start(flow.definition())
    (one,) = ledger.published
    ledger.published, ledger.seen = [], []

    await ledger.batch(ledger.finished(one, completed(MEGABYTE)))

    batches = [len(effects.publications) for effects in ledger.seen if effects.publications]
    assert sum(batches) == 300
    assert len(batches) > 1


async def test_a_damaged_value_is_told_as_such(ledger: Ledger) -> None:
    flow = Workflow("damaged")
    first = flow.task("work", name="first")
    flow.task("work", From("input"), name="second", after=[first])
    await ledger.start(flow.definition(), {"x": 1})
    key = VALUES.pack(("w", "", INPUT))
    await ledger.database.run(lambda tr: tr.set(key, versions.VALUE.pack((7, b"\0" * 32, b'{"x":1}'))))

    await ledger.play(lambda _: completed())

    told = await failure(ledger, "second")
    assert (told["reason"], told["type"]) == ("damaged_value", "DamagedValue")
    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: 1, TaskState.FAILED: 1}


async def test_a_value_that_json_cannot_say_is_a_matter_of_the_expression(ledger: Ledger) -> None:
    flow = Workflow("infinite")
    flow.task("work", {"n": From("sum(input)")}, name="sum")

    await ledger.start(flow.definition(), [1.7e308, 1.7e308])

    assert (await failure(ledger, "sum"))["reason"] == "expression"


def test_the_account_of_one_node_is_no_more_than_a_transaction_goes_beyond() -> None:
    assert advance.MOST_STEPS_HERE <= unit_of_work.MOST_STEPS


async def test_a_reason_of_any_length_cancels(ledger: Ledger) -> None:
    await ledger.start(gathering(2))

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "r" * 200_000})

    assert await ledger.state() is WorkflowState.CANCELED
    assert (await ledger.run()).reason == "r" * MOST_COMMENT


async def start_large(ledger: Ledger, patched: pytest.MonkeyPatch) -> None:
    """Nine nodes whose definitions have a megabyte each; two of them are a transaction's work."""
    patched.setattr(unit_of_work, "MOST_STEPS", 2_000_000 // unit_of_work.BYTES_PER_STEP)
    flow = Workflow("wide")
    for number in range(9):
        flow.task("work", MEGABYTE, name=f"n{number}")
    for number, node in enumerate(flow.definition().nodes, 1):
        nodes = {node.name: node_document(node)}
        await ledger.ask(
            Verb.START, {"workflow": "w", "name": "wide", "count": 9, "chunk": number, "chunks": 9, "nodes": nodes}
        )


async def test_large_definitions_are_gone_over_in_several_transactions(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_large(ledger, monkeypatch)
    ledger.definitions = Definitions()  # another process, which remembers nothing
    ledger.seen.clear()

    await ledger.batch(Show("w"))
    shown = [[one.node_key.node for one in effects.snapshots] for effects in ledger.seen]
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})

    assert shown == [["n0", "n1"], ["n2", "n3"], ["n4", "n5"], ["n6", "n7"], ["n8"]]
    assert await ledger.state() is WorkflowState.CANCELED
    assert (await ledger.run()).todo == 0


@pytest.mark.parametrize("remembered", [True, False])
async def test_large_definitions_are_looked_at_and_shown_by_name_a_few_in_a_batch(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, remembered: bool
) -> None:
    await start_large(ledger, monkeypatch)
    if not remembered:
        ledger.definitions = Definitions()
    names = ("none", *(f"n{number}" for number in range(4)))
    others = ("none", *(f"n{number}" for number in range(2, 6)))

    (looked,) = await ledger.batch(Look(tuple(NodeKey("w", name) for name in names)))
    (left,) = await ledger.batch(Show("w", others))
    shown = ledger.seen[-1].snapshots

    assert [one.node_key.node for one in looked] == ["n0", "n1"]
    assert [one.node_key.node for one in shown] == ["n2", "n3"]
    assert left == ("n4", "n5")
    assert await ledger.batch(Show("w", left), Look((NodeKey("w", "none"),))) == ((), [])


async def wait_large(ledger: Ledger, patched: pytest.MonkeyPatch) -> list[NodeKey]:
    """The same nodes, which are ready and wait for room; nothing is remembered of them."""
    ledger.room = {"work": 0}
    await start_large(ledger, patched)
    ledger.definitions = Definitions()
    ledger.seen.clear()
    return [NodeKey("w", f"n{number}") for number in range(9)]


async def test_large_definitions_are_claimed_from_the_ready_index_in_several_transactions(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_keys = await wait_large(ledger, monkeypatch)

    more = [(await ledger.batch(Fill("work", 9)))[0] for _ in range(5)]

    assert [len(effects.publications) for effects in ledger.seen] == [2, 2, 2, 2, 1]
    assert more == [True, True, True, True, False]
    assert [one.node_key for one in ledger.published] == node_keys


@pytest.mark.parametrize("room", ["work", ""])
async def test_large_definitions_that_rq_proposes_are_looked_at_in_several_transactions(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    left = node_keys = await wait_large(ledger, monkeypatch)
    claimed: list[int] = []

    while left:
        claimed += await ledger.batch(Proposed(tuple(left), room))
        left = ledger.seen[-1].proposed

    looked_at = [len(effects.publications) + len(effects.snapshots) for effects in ledger.seen]
    assert looked_at == [2, 2, 2, 2, 1]
    assert claimed == (looked_at if room else [0] * 5)
    assert [one.node_key for one in ledger.published] == (node_keys if room else [])
