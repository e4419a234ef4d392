"""Intake: what is promised is taken whole, and of what is refused nothing stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from coditect import Workflow
from coditect.client import upload
from coditect.errors import CoditectError, InvalidWorkflow
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.definition import MOST_PREDECESSORS, After, Call, Definition, Node
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import idempotency
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.definitions import MOST_ROW_BYTES, Definitions
from dispatcher.ledger.keyspace import ROOT
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows import remove as removal
from dispatcher.ledger.workflows.queries import nodes
from dispatcher.store.errors import KeyTooLarge
from dispatcher.store.limits import KEY_BYTES
from tests.unit.dispatcher.lone_ledger import Ledger, completed

Body = dict[str, Any]
MANY = [f"n{number}" for number in range(MOST_PREDECESSORS + 1)]


async def everything(ledger: Ledger) -> list[tuple[bytes, bytes]]:
    return await ledger.database.read(lambda tr: tr.get_range(*ROOT.range()))


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
    "a key that is too long": field("key", "k" * (idempotency.LONGEST_KEY_BYTES + 1)),
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


@pytest.mark.parametrize("name", [*OF_ANY_CHUNK, *OF_THE_FIRST])
async def test_of_a_first_chunk_that_is_refused_nothing_stays(ledger: Ledger, name: str) -> None:
    spoil = (OF_ANY_CHUNK | OF_THE_FIRST)[name]
    first, last = chunks()
    before = await everything(ledger)

    with pytest.raises(CoditectError):
        await ledger.ask(Verb.START, spoil(first))
    after = await everything(ledger)
    await ledger.ask(Verb.START, first)
    await ledger.ask(Verb.START, last)
    await ledger.play(lambda _: completed())

    assert after == before
    assert await ledger.state() is WorkflowState.COMPLETED


@pytest.mark.parametrize("name", [*OF_ANY_CHUNK, *OF_THE_LAST])
async def test_of_a_last_chunk_that_is_refused_nothing_stays(ledger: Ledger, name: str) -> None:
    spoil = (OF_ANY_CHUNK | OF_THE_LAST)[name]
    first, last = chunks()
    count = 4 if name == "missing nodes" else 3
    await ledger.ask(Verb.START, first | {"count": count})
    before = await everything(ledger)

    with pytest.raises(CoditectError):
        await ledger.ask(Verb.START, spoil(last))
    after = await everything(ledger)
    more = {"d": {"task": "work"}} if count == 4 else {}
    await ledger.ask(Verb.START, last | {"nodes": last["nodes"] | more})
    await ledger.play(lambda _: completed())

    assert after == before
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_refusal_leaves_what_others_did_in_the_batch(ledger: Ledger) -> None:
    first, last = chunks()

    _, refused, accepted = await ledger.batch(
        Asked(Verb.START, first), Asked(Verb.START, node(after=["nobody"])(last)), Asked(Verb.START, last)
    )

    assert isinstance(refused, InvalidWorkflow)
    assert accepted["state"] == "accepted"
    assert set(await ledger.states()) == {"a", "b", "c"}


async def test_what_the_store_refuses_between_two_writes_takes_the_batch_with_it(ledger: Ledger) -> None:
    """The rows of the nodes can be written, the longer key of their edge cannot."""
    before, after = "b" * 100, "a" * 100
    nodes = {before: {"task": "work"}, after: {"task": "work", "after": [before]}}
    body = {"workflow": "w" * (KEY_BYTES - 150), "name": "two", "count": 2, "nodes": nodes}
    untouched = await everything(ledger)

    with pytest.raises(KeyTooLarge):
        await ledger.batch(Asked(Verb.START, body))

    assert await everything(ledger) == untouched


# -- the sizes that a client promises -------------------------------------------------------------------------


async def start(ledger: Ledger, definition: Definition, value: Any = None) -> int:
    """Has it accepted in the chunks that the client makes; how many these were."""
    sent = upload.cut(definition, value, workflow="w", key=None)
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
    asked = await ledger.database.read(lambda tr: nodes(tr, {"workflow": "w"}))
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
    flow = Workflow("heavy")
    for number in range(9):
        flow.task("work", "x" * 1_000_000, name=f"n{number}")
    await start(ledger, flow.definition())

    asked: list[list[str]] = []
    following: Any = ""
    while following is not None:
        page = await ledger.database.read(lambda tr: nodes(tr, {"workflow": "w", "after": following}))  # noqa: B023
        following = page["next"]
        asked.append([row["name"] for row in page["nodes"]])

    assert asked == [["n0", "n1", "n2", "n3"], ["n4", "n5", "n6", "n7"], ["n8"]]


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

    assert not [key for key, _ in await everything(ledger) if "w" in ROOT.unpack(key)[1:]]


def fan_in(width: int, *, name: str = "") -> Definition:
    wide = [Node(f"{name}{number}", Call("work")) for number in range(width)]
    return Definition("fan", (*wide, Node("sum", Call("sum"), tuple(After(one.name) for one in wide))))


async def test_a_node_may_come_after_ten_thousand_others(ledger: Ledger) -> None:
    await start(ledger, fan_in(MOST_PREDECESSORS, name="n"))
    while ledger.published:
        some, ledger.published = ledger.published[:1_000], ledger.published[1_000:]
        await ledger.batch(*[ledger.finished(one, completed()) for one in some])

    assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: MOST_PREDECESSORS + 1}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_ten_thousand_long_names_fit_into_one_transaction(ledger: Ledger) -> None:
    """The longest that fit into a node of 1 MiB."""
    definition = fan_in(MOST_PREDECESSORS, name="n" * 95)
    *wide, last = definition.nodes
    long = Node("s" * 100, last.work, last.after)

    await start(ledger, Definition("fan", (*wide, long)))

    assert (await ledger.run()).open == MOST_PREDECESSORS + 1


async def test_chunks_are_cut_by_their_edges_too(ledger: Ledger) -> None:
    layer = [Node(f"n{number}", Call("work")) for number in range(100)]
    after = tuple(After(one.name) for one in layer)
    behind = [Node(f"m{number}", Call("work"), after) for number in range(900)]

    assert await start(ledger, Definition("dense", (*layer, *behind))) == 900 * 100 // upload.MOST_EDGES_OF_A_CHUNK


def test_more_predecessors_are_refused_with_the_bound_before_anything_is_sent() -> None:
    with pytest.raises(InvalidWorkflow, match="at most 10,000 others, 'sum' after 10,001"):
        upload.cut(fan_in(MOST_PREDECESSORS + 1, name="n"), None, workflow="w", key=None)
