from __future__ import annotations

from coditect.model.workflow.definition import Call, Node
from dispatcher.layers.ledger.book import Definitions
from dispatcher.layers.ledger.effects import Place


def test_definitions_that_are_asked_for_outlive_the_others() -> None:
    definitions = Definitions(most=4)
    places = [Place("w", f"n{number}") for number in range(4)]
    for place in places[:2]:
        definitions.put(place, Node(place.node, Call("a.b")))
    definitions.put(places[2], Node("n2", Call("a.b")))  # the first two are old now

    kept = definitions.get(places[0])
    definitions.put(places[3], Node("n3", Call("a.b")))

    assert kept is not None and kept.name == "n0"
    assert definitions.get(places[1]) is None
    assert definitions.get(places[0]) == kept
