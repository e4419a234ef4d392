from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
from hypothesis import given

from coditect import After, Priority, Retry, Workflow
from coditect.workflow.definition import Approval, Call, Definition, Each, Node, OnFailure, OnTimeout
from coditect.workflow.documents.document import node_document
from coditect.workflow.documents.reader import read_node
from dispatcher.ledger import versions
from dispatcher.ledger.definitions import MOST_READ_BYTES, OVERHEAD_BYTES, Caches, Definitions, known
from dispatcher.ledger.effects import Defined, NodeKey
from dispatcher.ledger.unit_of_work import BYTES_PER_STEP, UnitOfWork
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.transaction import Transaction
from tests.unit.dispatcher.lone_ledger import Ledger, completed
from tests.unit.workflow.graphs import definitions

ROWS: list[tuple[bytes, Node]] = [
    (b'{"task":"work"}', Node("n", Call("work"))),
    (
        b'{"task":"code.review","input":{"a":[{"$from":"input.a"},null,1.5]},"priority":"p0","timeout":"5m",'
        b'"start_within":"1500ms","deadline":"2d","heartbeat":"45s",'
        b'"retry":{"max_attempts":2,"first":"250ms","cap":"1h"},"compensate":"code.undo",'
        b'"after":["a",{"node":"b","on_failure":"skip"},{"node":"c","on_failure":"allow"}],"join":2,"when":"input.b"}',
        Node(
            "n",
            Call(
                "code.review",
                {"a": [{"$from": "input.a"}, None, 1.5]},
                Priority.P0,
                timeout_ms=300_000,
                retry=Retry(2, "250ms", "1h"),
                compensate="code.undo",
                start_within_ms=1_500,
                deadline_ms=172_800_000,
                heartbeat_ms=45_000,
            ),
            (After("a"), After("b", OnFailure.SKIP), After("c", OnFailure.ALLOW)),
            2,
            "input.b",
        ),
    ),
    (
        b'{"map":"work","over":"input.list","limit":10000,"input":{"$from":"item"},"priority":"p2","timeout":"30s",'
        b'"after":["a","b"],"join":"any"}',
        Node(
            "n",
            Each(Call("work", {"$from": "item"}, Priority.P2, timeout_ms=30_000), "input.list", 10_000),
            (After("a"), After("b")),
            "any",
        ),
    ),
    (b'{"approval":"Ship it?"}', Node("n", Approval("Ship it?"))),
    (
        '{"approval":"Größe ändern?","timeout":"2h","on_timeout":"grant","after":["a"],"when":"input"}'.encode(),
        Node("n", Approval("Größe ändern?", 7_200_000, OnTimeout.GRANT), (After("a"),), "all", "input"),
    ),
]
"""A row of each kind of node, with the fewest fields and with all; stores hold such rows."""


@pytest.mark.parametrize(("row", "node"), ROWS)
def test_a_node_s_row_stays_as_it_is_to_the_byte(row: bytes, node: Node) -> None:
    assert versions.NODE.pack(node_document(node)) == row
    assert known(NodeKey("w", "n"), row) == node
    assert read_node("n", versions.NODE.unpack(row)) == node


@given(definitions(most=6))
def test_a_node_is_read_from_its_row_as_it_was(definition: Definition) -> None:
    for node in definition.nodes:
        assert known(NodeKey("w", node.name), versions.NODE.pack(node_document(node))) == node


def test_the_oldest_definitions_go_first_and_one_that_is_read_again_is_new() -> None:
    definitions = Definitions(most_bytes=2 * (OVERHEAD_BYTES + 10))
    node_keys = [NodeKey("w", f"n{number}") for number in range(3)]
    for node_key in (*node_keys[:2], node_keys[0]):
        definitions.note({node_key: (b"x" * 10, None)})

    definitions.note({node_keys[2]: (b"y" * 10, None)})

    assert [definitions.row(node_key) for node_key in node_keys] == [b"x" * 10, None, b"y" * 10]


def test_definitions_take_no_more_than_their_bytes() -> None:
    definitions = Definitions(most_bytes=10_000)
    definitions.note({NodeKey("w", "small"): (b"x", None), NodeKey("w", "large"): (b"x" * 10_000, None)})
    nothing = len(definitions)
    for number in range(1_000):
        definitions.note({NodeKey("w", f"n{number % 60}"): (b"x" * (number % 50), None)})

    assert nothing == 0
    assert 30 <= len(definitions) <= 10_000 // OVERHEAD_BYTES


def test_what_a_node_s_row_says_goes_with_the_row() -> None:
    definitions, node_key = Definitions(), NodeKey("w", "n")
    node = Node("n", Call("one"))

    found = []
    for told in ((b"one", None), (b"one", node), (b"other", None), None):
        definitions.note({node_key: told})
        found.append((definitions.row(node_key), definitions.node(node_key)))

    assert found == [(b"one", None), (b"one", node), (b"other", None), (None, None)]


def test_of_the_nodes_that_were_read_the_first_are_let_go_by_the_bytes_of_their_rows() -> None:
    definitions, node = Definitions(), Node("n", Call("one"))
    large, node_keys = b"x" * (MOST_READ_BYTES // 4), [NodeKey("w", f"n{number}") for number in range(5)]
    definitions.note(dict.fromkeys(node_keys, (large, node)))
    too_large = NodeKey("w", "large")
    kept = [definitions.node(node_key) for node_key in node_keys]

    definitions.note({too_large: (large * 5, node)})

    assert kept == [None, *[node] * 4]
    assert definitions.row(too_large) == large * 5
    assert definitions.node(too_large) is None


def test_follower_of_a_node_is_known_as_long_as_its_definition_is() -> None:
    definitions, first, second = Definitions(), NodeKey("w", "first"), NodeKey("w", "second")
    follows = Node("second", Call("one"), (After("first"),))
    joins = Node("second", Call("one"), (After("first"), After("other")))

    found = []
    for told in ((b"row", follows), (b"row", None), (b"row", joins), (b"row", follows), None):
        definitions.note({second: told})
        found.append(definitions.follower(first))

    assert found == [second, None, None, second, None]


def test_follower_is_forgotten_with_the_definitions_that_are_let_go() -> None:
    definitions, follows = Definitions(), Node("second", Call("one"), (After("first"),))
    definitions.note({NodeKey("w", "second"): (b"row", follows)})

    definitions.note({NodeKey("w", "large"): (bytes(MOST_READ_BYTES), Node("large", Call("one")))})

    assert definitions.follower(NodeKey("w", "first")) is None


async def test_what_is_remembered_of_a_node_is_not_read_again(ledger: Ledger) -> None:
    flow = Workflow("two")
    flow.task("work", {"x": "y" * 1_000}, after=[flow.task("work", name="first")], name="second")
    await ledger.start(flow.definition())
    node_key = NodeKey("w", "second")
    node, row = ledger.definitions.node(node_key), ledger.definitions.row(node_key)
    assert node is not None
    assert row is not None

    def look(tr: Transaction, known: Defined | None) -> tuple[Node, int, Mapping[NodeKey, Defined | None]]:
        caches = Caches()
        caches.definitions.note({node_key: known})
        unit = UnitOfWork(tr, ledger.policy, caches, now_ms=0, chance=0.0, room={})
        return unit.definition(node_key), unit.steps, unit.close().definitions

    found = [await ledger.database.run(partial(look, known=known)) for known in (None, (row, None), (row, node))]

    cost = len(row) // BYTES_PER_STEP
    assert cost > 0
    assert found == [(node, cost, {node_key: (row, node)}), (node, cost, {node_key: (row, node)}), (node, 0, {})]


async def test_nothing_is_remembered_of_nodes_that_ended() -> None:
    flow = Workflow("short")
    first = flow.task("work", name="first")
    flow.task("work", after=[first], name="second")
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition())
        at_first = len(ledger.definitions)
        await ledger.play(lambda _: completed())

    assert at_first == 2
    assert len(ledger.definitions) == 0
    assert ledger.definitions.row(NodeKey("w", "first")) is None
