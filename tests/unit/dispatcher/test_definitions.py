from __future__ import annotations

from coditect import Workflow
from coditect.model.json import dumps
from coditect.model.workflow.definition import Call, Node
from coditect.model.workflow.document import node_document
from dispatcher.layers.ledger.definitions import MOST_READ_BYTES, OVERHEAD_BYTES, Definitions
from dispatcher.layers.ledger.effects import Place
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.ledger import Ledger, completed


def test_definitions_that_are_asked_for_outlive_the_others() -> None:
    definitions = Definitions(most_bytes=2 * (OVERHEAD_BYTES + 10))
    places = [Place("w", f"n{number}") for number in range(3)]
    for place in (*places[:2], places[0]):
        definitions.put(place, b"x" * 10)

    kept = definitions.get(places[0])
    definitions.put(places[2], b"y" * 10)

    assert [definitions.get(place) for place in places] == [kept, None, b"y" * 10]


def test_definitions_take_no_more_than_their_bytes() -> None:
    definitions = Definitions(most_bytes=10_000)
    definitions.put(Place("w", "small"), b"x")
    definitions.put(Place("w", "large"), b"x" * 10_000)
    nothing = len(definitions)
    for number in range(1_000):
        definitions.put(Place("w", f"n{number % 60}"), b"x" * (number % 50))

    assert nothing == 0
    assert 30 <= len(definitions) <= 10_000 // OVERHEAD_BYTES


def test_a_node_that_was_read_is_read_again_from_a_newer_row() -> None:
    definitions, place = Definitions(), Place("w", "n")
    rows = [dumps(node_document(Node("n", Call(capability)))) for capability in ("one", "other")]

    unknown, first = definitions.node(place), definitions.read(place, rows[0])
    again = definitions.node(place)
    definitions.put(place, rows[1])
    newer = definitions.node(place)
    definitions.forget(place)

    assert unknown is None
    assert again is first
    assert (first.call, newer and newer.call) == (Call("one"), Call("other"))
    assert definitions.node(place) is None


def test_of_the_nodes_that_were_read_the_first_are_let_go_by_the_bytes_of_their_rows() -> None:
    definitions, place = Definitions(), Place("w", "first")
    large = dumps(node_document(Node("n", Call("one", "x" * (MOST_READ_BYTES // 4)))))
    first = definitions.read(place, large)
    kept = definitions.node(place)
    for number in range(4):
        definitions.read(Place("w", f"n{number}"), large)

    assert kept is first
    assert definitions.node(place) is not first
    assert definitions.node(place) == first


def test_one_node_beyond_the_bytes_is_read_every_time() -> None:
    definitions, place = Definitions(), Place("w", "n")
    first = definitions.read(place, dumps(node_document(Node("n", Call("one", "x" * MOST_READ_BYTES)))))

    assert definitions.node(place) == first
    assert definitions.node(place) is not first


def test_what_is_kept_as_it_was_read_needs_no_reading() -> None:
    definitions, places = Definitions(), [Place("w", name) for name in ("large", "small", "unknown")]
    rows = [dumps(node_document(Node("n", Call("one", "x" * size)))) for size in (MOST_READ_BYTES, 10)]
    unread = []
    for place, row in zip(places, rows, strict=False):
        definitions.put(place, row)
        unread.append(definitions.unread_bytes(place))
        definitions.node(place)

    assert unread == [len(row) for row in rows]
    assert [definitions.unread_bytes(place) for place in places] == [len(rows[0]), 0, 0]


def test_what_was_read_elsewhere_is_kept_of_a_row_that_is_remembered() -> None:
    definitions, place = Definitions(), Place("w", "n")
    node = Node("n", Call("one"))

    definitions.learn(place, node)
    unknown = definitions.node(place)
    definitions.put(place, dumps(node_document(node)))
    definitions.learn(place, node)

    assert unknown is None
    assert definitions.node(place) is node
    assert definitions.unread_bytes(place) == 0


async def test_nothing_is_remembered_of_nodes_that_ended() -> None:
    flow = Workflow("short")
    first = flow.task("work", name="first")
    flow.task("work", after=[first], name="second")
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition())
        at_first = len(ledger.terms.definitions)
        await ledger.play(lambda _: completed())

    assert at_first == 2
    assert len(ledger.terms.definitions) == 0
    assert ledger.terms.definitions.node(Place("w", "first")) is None
