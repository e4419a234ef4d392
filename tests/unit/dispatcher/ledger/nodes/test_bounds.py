"""What a workflow and its expressions may cost: beyond it they fail or are refused, and nothing of them stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Workflow
from coditect.client import workflows
from coditect.errors import CoditectError, InvalidWorkflow
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.definition import MOST_ELEMENTS, MOST_PREDECESSORS, After, Call, Definition, From, Node
from coditect.workflow.documents.document import node_document
from coditect.workflow.expressions import MAX_EXPRESSION_STEPS
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import idempotency, unit_of_work, values, versions
from dispatcher.ledger.commands import Asked, Evaluated, Look, Proposed, Show
from dispatcher.ledger.definitions import MOST_ROW_BYTES, Definitions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import ValueBeyondBound
from dispatcher.ledger.keyspace import ROOT, VALUES
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.inputs import FAILURE, MOST_SEEN_BYTES, RESULT, Inputs, gathered
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows import remove as removal
from dispatcher.ledger.workflows.control import MOST_COMMENT
from dispatcher.ledger.workflows.queries import nodes
from dispatcher.store.errors import KeyTooLarge
from dispatcher.store.limits import KEY_BYTES
from tests.unit.dispatcher.lone_ledger import Ledger, SlowMachine, completed, one_map, wide

MEGABYTE = "x" * 1_000_000


async def failure(ledger: Ledger, node: str) -> dict[str, str]:
    """Why the node failed."""
    assert (await ledger.states())[node] is TaskState.FAILED
    told = await ledger.value(node, FAILURE)
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


@pytest.mark.parametrize(
    ("template", "reason", "message"),
    [
        ({"item": From("item"), "context": From("input.context")}, "too_large", "references in place of values"),
        ({"n": From("length(input.items)")}, "expression", "too many steps"),
        ({"n": From("sum(input.infinite)")}, "expression", ""),
    ],
    ids=["a large input for each element", "one account for all elements", "what JSON cannot say"],
)
async def test_a_map_beyond_a_bound_fails(ledger: Ledger, template: dict[str, From], reason: str, message: str) -> None:
    flow = Workflow("map")
    flow.map("work", "input.items", template, limit=MOST_ELEMENTS, name="each")
    value = {"items": [*range(5_000)], "context": "x" * 500_000, "infinite": [1.7e308, 1.7e308]}
    await ledger.start(flow, value)

    told = await failure(ledger, "each")
    assert told["reason"] == reason
    assert message in told["message"] + told.get("fix", "")
    assert (told["type"] == "ValueBeyondBound") == (reason == "too_large")


@pytest.fixture
async def slow_machine() -> AsyncIterator[Ledger]:
    async with SlowMachine() as database:
        yield await Ledger.open(database)


@pytest.mark.proof
async def test_a_map_of_the_most_elements_is_within_its_account(slow_machine: Ledger) -> None:
    ledger = slow_machine
    flow = Workflow("map")
    template = {f"f{number}": From(f"item.{name}") for number, name in enumerate("abcab")}
    flow.map("work", "input", template, limit=MOST_ELEMENTS, name="each")

    await ledger.start(flow, [{"a": 1, "b": "two", "c": [3, 4]}] * MOST_ELEMENTS)

    assert (await ledger.run()).counts == {"working": 1, "published": MOST_ELEMENTS}
    assert ledger.database.repeated <= 5  # none on a quiet machine; a busy one does less in the same time


STEPS_OF_EACH = 60
"""A little more than the expressions below take for each of the numbers."""


@settings(max_examples=4, deadline=None)
@given(numbers=st.integers(100, MAX_EXPRESSION_STEPS // STEPS_OF_EACH), nodes=st.integers(1, 4))
async def test_what_is_within_the_account_is_evaluated_on_a_slow_machine(numbers: int, nodes: int) -> None:
    flow = wide(nodes, "work", {"n": From("length(input)")}, when="length(input[?@ > `1`]) > `5`")
    async with SlowMachine() as database:
        ledger = await Ledger.open(database)

        await ledger.start(flow, [*range(numbers)])
        await ledger.play(lambda _: completed())

        assert await ledger.state() is WorkflowState.COMPLETED
        assert database.repeated == 0


async def test_what_is_evaluated_meanwhile_may_be_canceled_or_left_to_the_next_owner(ledger: Ledger) -> None:
    flow = Workflow("slow")
    flow.task("work", name="slow", when="length(input[?@ > `1`]) > `5`")
    ledger.evaluates = False
    for workflow in ("canceled", "taken"):
        await ledger.start(flow, [*range(30_000)], workflow=workflow)
    await ledger.ask(Verb.CANCEL, {"workflow": "canceled"})
    await ledger.batch(Evaluated(NodeKey("taken", "slow"), "another beginning", Inputs(False)))
    meanwhile = await ledger.state("canceled"), await ledger.states("taken")
    ledger.set_aside.clear()  # another process, which remembers nothing
    ledger.evaluates = True
    await ledger.go_on()

    assert meanwhile == (WorkflowState.RUNNING, {"slow": TaskState.BLOCKED})
    assert await ledger.state("canceled") is WorkflowState.CANCELED
    assert (await ledger.states("taken"))["slow"] is TaskState.PUBLISHED
    assert (await ledger.run("taken")).todo == 0


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
    assert told["reason"] == "too_large"
    assert told["fix"] == "return references in place of large values, or let the node come after fewer"


async def test_a_node_may_see_eight_mebibytes(ledger: Ledger) -> None:
    await ledger.start(gathering(MOST_SEEN_BYTES // len(MEGABYTE)))

    await ledger.play(lambda one: completed(MEGABYTE if one.node_key.node != "sum" else None))

    assert await ledger.state() is WorkflowState.COMPLETED


async def test_values_of_a_map_are_read_up_to_its_bound(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "VALUES_PAGE", 2)
    await ledger.start(one_map(), [*range(10)])
    behind = values.ValueKey("w", "each[4]", RESULT)

    last = ledger.published.pop(0)
    await ledger.play(lambda _: completed("x" * 500_000))
    damaged = versions.VALUE.pack((7, b"\0" * 32, b"damaged"))
    await ledger.database.run(lambda tr: tr.set(VALUES.pack(behind.key), damaged))
    await ledger.batch(ledger.finished(last, completed("x" * 500_000)))

    assert (await failure(ledger, "each"))["reason"] == "result_too_large"


@pytest.mark.parametrize(
    ("value", "expression", "most"),
    [([1] * 50_000, "length(results.first)", unit_of_work.FULL_STEPS // 100_000 + 1), (MEGABYTE, "states.first", 39)],
    ids=["costly expressions", "large values"],
)
async def test_costly_nodes_are_released_apart(prompt_ledger: Ledger, value: Any, expression: str, most: int) -> None:
    ledger = prompt_ledger
    flow = Workflow("fan")
    first = flow.task("work", name="first")
    for number in range(40):
        flow.task("work", {"n": From(expression)}, name=f"n{number:02}", after=[first])
    await ledger.start(flow)
    ledger.seen.clear()

    await ledger.end("first", completed(value))
    batches = [len(effects.publications) for effects in ledger.seen if effects.publications]
    await ledger.play(lambda _: completed())

    assert sum(batches) == 40
    assert max(batches) <= most
    assert advance.MOST_STEPS_HERE <= unit_of_work.FULL_STEPS
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_a_reason_of_any_length_cancels(ledger: Ledger) -> None:
    await ledger.start(gathering(2))

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "r" * 200_000})

    assert await ledger.state() is WorkflowState.CANCELED
    assert (await ledger.run()).reason == "r" * MOST_COMMENT


async def start_large(ledger: Ledger, patched: pytest.MonkeyPatch) -> None:
    """Nine nodes whose definitions have a megabyte each; two of them are a transaction's work."""
    patched.setattr(unit_of_work, "FULL_STEPS", 2_000_000 // unit_of_work.BYTES_PER_STEP)
    flow = wide(9, "work", MEGABYTE)
    for number, node in enumerate(flow.definition().nodes, 1):
        nodes = {node.name: node_document(node)}
        chunk = {"workflow": "w", "name": "wide", "count": 9, "chunk": number, "chunks": 9, "nodes": nodes}
        await ledger.ask(Verb.START, chunk)


async def test_large_definitions_are_gone_over_in_pieces(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
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
async def test_large_definitions_are_shown_few(
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


async def test_large_definitions_are_claimed_in_pieces(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    node_keys = await wait_large(ledger, monkeypatch)

    left = [await ledger.fill("work", 9) for _ in range(5)]

    assert [len(effects.publications) for effects in ledger.seen] == [2, 2, 2, 2, 1]
    assert left == [7, 5, 3, 1, 0]
    assert [one.node_key for one in ledger.published] == node_keys


@pytest.mark.parametrize("room", ["work", ""])
async def test_large_proposals_are_taken_in_pieces(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    left = node_keys = await wait_large(ledger, monkeypatch)
    claimed: list[int] = []

    while left:
        claimed += await ledger.batch(Proposed(tuple(left), room))
        left = ledger.seen[-1].proposed

    looked_at = [len(effects.publications) + len(effects.snapshots) for effects in ledger.seen]
    assert looked_at == [2, 2, 2, 2, 1]
    assert claimed == (looked_at if room else [0] * 5)
    assert [one.node_key for one in ledger.published] == (node_keys if room else [])


Body = dict[str, Any]
MANY = [f"n{number}" for number in range(MOST_PREDECESSORS + 1)]


def chunks() -> tuple[Body, Body]:
    """A workflow of three nodes in two chunks."""
    head = {"workflow": "w", "name": "three", "count": 3, "chunks": 2, "key": "once"}
    first = {"a": {"task": "work"}, "b": {"task": "work", "after": ["a"]}}
    last = {"c": {"task": "work", "input": {"$from": "results.b"}, "after": ["a", "b"]}}
    return head | {"chunk": 1, "input": {"x": 1}, "nodes": first}, head | {"chunk": 2, "nodes": last}


def node(**fields: Any) -> Callable[[Body], Body]:
    return lambda body: body | {"nodes": body["nodes"] | {"z": {"task": "work"} | fields}}


def field(name: str, value: Any) -> Callable[[Body], Body]:
    return lambda body: body | {name: value}


OF_ANY_CHUNK: dict[str, Callable[[Body], Body]] = {
    "no nodes": field("nodes", {}),
    "nodes that are a list": field("nodes", [{"task": "work"}]),
    "too many nodes": field("nodes", {f"n{number}": {"task": "work"} for number in range(1_001)}),
    "more nodes than it said": lambda body: (
        body | {"nodes": body["nodes"] | {f"more{number}": {"task": "work"} for number in range(3)}}
    ),
    "a strange node": field("nodes", {"z": {"task": "work", "speed": 1}}),
    "a strange name": field("nodes", {"z z": {"task": "work"}}),
    "an unknown predecessor": node(after=["nobody"]),
    "a predecessor twice": node(after=["a", "a"]),
    "itself": node(after=["z"]),
    "a join of too many": node(after=["a"], join=2),
    "too many predecessors": node(after=MANY),
    "an expression that is none": node(input={"$from": "input["}),
    "a long question": lambda body: body | {"nodes": body["nodes"] | {"z": {"approval": "?" * 2_001}}},
    "a node that is too large": node(input="x" * LARGEST_BYTES),
    "a chunk too early": field("chunk", 3),
    "a chunk that is no number": field("chunk", True),
    "a key that is too long": field("key", "k" * (idempotency.LONGEST_IDEMPOTENCY_KEY_BYTES + 1)),
    "a key that is no Unicode": field("key", "\ud800"),
}
OF_THE_FIRST: dict[str, Callable[[Body], Body]] = {
    "no name": field("name", None),
    "a name that is none": field("name", "a name"),
    "a count of none": field("count", 0),
    "a count of too many": field("count", 100_001),
    "a long description": field("description", "x" * 2_001),
    "a description that is no text": field("description", {"en": "x"}),
    "a large input": field("input", "x" * LARGEST_BYTES),
    "missing nodes": field("chunks", 1),
}
OF_THE_LAST: dict[str, Callable[[Body], Body]] = {
    "two of one name": field("nodes", {"a": {"task": "work"}}),
    "missing nodes": lambda body: body,
}


SPOILED = [(1, name, spoil) for name, spoil in (OF_ANY_CHUNK | OF_THE_FIRST).items()]
SPOILED += [(2, name, spoil) for name, spoil in (OF_ANY_CHUNK | OF_THE_LAST).items()]


@pytest.mark.parametrize(
    ("chunk", "name", "spoil"), SPOILED, ids=[f"{name} in chunk {chunk}" for chunk, name, _ in SPOILED]
)
async def test_refused_chunk_leaves_nothing(
    ledger: Ledger, chunk: int, name: str, spoil: Callable[[Body], Body]
) -> None:
    first, last = chunks()
    more = {"d": {"task": "work"}} if (chunk, name) == (2, "missing nodes") else {}
    bodies = [first | {"count": 3 + len(more)}, last]
    if chunk == 2:
        await ledger.ask(Verb.START, bodies.pop(0))
    before = await ledger.everything()
    with pytest.raises(CoditectError):
        await ledger.ask(Verb.START, spoil(bodies[0]))
    after = await ledger.everything()
    for body in (*bodies[:-1], last | {"nodes": last["nodes"] | more}):
        await ledger.ask(Verb.START, body)
    await ledger.play(lambda _: completed())

    assert after == before
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_refusal_leaves_what_others_did_in_the_batch(ledger: Ledger) -> None:
    first, last = chunks()

    bodies = (first, node(after=["nobody"])(last), last)
    _, refused, accepted = await ledger.batch(*[Asked(Verb.START, body) for body in bodies])

    assert isinstance(refused, InvalidWorkflow)
    assert accepted["state"] == "accepted"
    assert set(await ledger.states()) == {"a", "b", "c"}


async def test_what_the_store_refuses_between_two_writes_takes_the_batch_with_it(ledger: Ledger) -> None:
    """The rows of the nodes can be written, the longer key of their edge cannot."""
    before, after = "b" * 100, "a" * 100
    nodes = {before: {"task": "work"}, after: {"task": "work", "after": [before]}}
    body = {"workflow": "w" * (KEY_BYTES - 150), "name": "two", "count": 2, "nodes": nodes}
    untouched = await ledger.everything()

    with pytest.raises(KeyTooLarge):
        await ledger.batch(Asked(Verb.START, body))

    assert await ledger.everything() == untouched


# -- the sizes that a client promises -------------------------------------------------------------------------


async def start(ledger: Ledger, definition: Definition, value: Any = None) -> int:
    """Has it accepted in the chunks that the client makes; how many these were."""
    sent = workflows.cut(definition, value, workflow="w", key=None)
    for body, _ in sent.chunks():
        answer = await ledger.ask(Verb.START, body)
    assert answer["state"] == "accepted"
    return len(sent.cuts) - 1


@pytest.mark.parametrize("size", [MOST_ROW_BYTES - 200, MOST_ROW_BYTES, 120_000, MAX_BODY_BYTES - 500])
async def test_a_definition_of_any_size_is_kept_whole_by_whoever_reads_it(ledger: Ledger, size: int) -> None:
    text = "ü" * (size // 2)
    flow = Workflow("heavy")
    first = flow.task("work", {"text": text}, name="first")
    flow.task("work", text, name="second", after=[first])
    seen = {}

    await start(ledger, flow.definition())
    asked = await ledger.read(nodes, workflow="w")
    # another process, which remembers nothing
    ledger.definitions = Definitions()
    await ledger.play(lambda one: seen.update({one.node_key.node: loads(one.task.body)}) or completed())

    assert seen == {"first": {"text": text}, "second": text}
    assert [(row["name"], row["capability"], row["after"]) for row in asked["nodes"]] == [
        ("first", "work", []),
        ("second", "work", ["first"]),
    ]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_nodes_with_large_definitions_come_in_smaller_pages(ledger: Ledger) -> None:
    await start(ledger, wide(9, "work", MEGABYTE).definition())

    pages = [[row["name"] for row in page["nodes"]] for page in await ledger.pages(nodes, workflow="w")]

    assert pages == [["n0", "n1", "n2", "n3"], ["n4", "n5", "n6", "n7"], ["n8"]]


async def test_nothing_stays_of_a_large_definition_when_its_workflow_goes(ledger: Ledger) -> None:
    flow = Workflow("heavy")
    flow.task("work", "x" * 500_000, name="only")
    await start(ledger, flow.definition())
    await ledger.play(lambda _: completed())

    def remove(tr: Any) -> None:
        assert removal.condemn(tr, "w", before_ms=ledger.now_ms + 1)
        while removal.take_apart(tr, "w", before_ms=ledger.now_ms):
            pass
        removal.forget(tr, "w", ["only"], before_ms=ledger.now_ms)
        removal.forget(tr, "w", [], before_ms=ledger.now_ms)

    await ledger.database.run(remove)

    assert not [key for key, _ in await ledger.everything() if "w" in ROOT.unpack(key)[1:]]


def fan_in(width: int, *, name: str = "n") -> Definition:
    wide = [Node(f"{name}{number}", Call("work")) for number in range(width)]
    return Definition("fan", (*wide, Node("sum", Call("sum"), tuple(After(one.name) for one in wide))))


@pytest.mark.proof
async def test_a_node_may_come_after_ten_thousand_others(ledger: Ledger) -> None:
    await start(ledger, fan_in(MOST_PREDECESSORS))
    while ledger.published:
        some, ledger.published = ledger.published[:1_000], ledger.published[1_000:]
        await ledger.batch(*[ledger.finished(one, completed()) for one in some])

    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: MOST_PREDECESSORS + 1}
    assert await ledger.state() is WorkflowState.COMPLETED


@pytest.mark.proof
async def test_ten_thousand_long_names_fit_into_one_transaction(ledger: Ledger) -> None:
    """The longest that fit into a node of 1 MiB."""
    definition = fan_in(MOST_PREDECESSORS, name="n" * 95)
    *wide, last = definition.nodes
    long = Node("s" * 100, last.work, last.after)

    await start(ledger, Definition("fan", (*wide, long)))

    assert (await ledger.run()).open == MOST_PREDECESSORS + 1


async def test_chunks_are_cut_by_their_edges_too(ledger: Ledger) -> None:
    layer = [Node(f"n{number}", Call("work")) for number in range(50)]
    after = tuple(After(one.name) for one in layer)
    behind = [Node(f"m{number}", Call("work"), after) for number in range(200)]

    assert await start(ledger, Definition("dense", (*layer, *behind))) == 200 * 50 // workflows.MOST_EDGES_OF_A_CHUNK


def test_more_predecessors_are_refused_with_the_bound_before_anything_is_sent() -> None:
    with pytest.raises(InvalidWorkflow, match="at most 10,000 others, 'sum' after 10,001"):
        workflows.cut(fan_in(MOST_PREDECESSORS + 1), None, workflow="w", key=None)
