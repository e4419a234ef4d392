"""What a node's expressions see, read from the ledger; and the input that they make."""

from __future__ import annotations

from typing import Any

from coditect.expression import Scope, element_inputs, node_input
from coditect.model.json import dumps, loads
from coditect.model.workflow.definition import Node
from coditect.model.workflow.states import TaskState
from coditect.model.workflow.template import node_expressions
from dispatcher.layers import values
from dispatcher.layers.ledger.book import Book
from dispatcher.layers.ledger.effects import Place
from dispatcher.layers.ledger.rows import NodeRow
from dispatcher.store.transaction import Reads

INPUT = "input"
RESULT = "result"
FAILURE = "failure"


def scope_of(book: Book, place: Place, node: Node) -> Scope:
    """The workflow's input, and how the node's predecessors ended."""
    results: dict[str, Any] = {}
    states: dict[str, str] = {}
    for edge in node.after:
        before = Place(place.workflow, edge.node)
        row = book.node(before)
        if row is None:
            continue
        states[edge.node] = row.state.value
        results[edge.node] = value_of(book.tr, before, RESULT) if row.state is TaskState.COMPLETED else None
    return Scope(value_of(book.tr, Place(place.workflow, ""), INPUT), results, states)


def value_of(tr: Reads, place: Place, kind: str) -> Any:
    """The value as JSON; None when there is none."""
    body = values.get(tr, values.Place(place.workflow, place.node, kind))
    return None if body is None else loads(body)


def write(book: Book, place: Place, kind: str, body: bytes, *, first: bool = False) -> None:
    """Writes a value; with `first` the place never had one. Raises: ValueBeyondBound."""
    values.put(book.tr, values.Place(place.workflow, place.node, kind), body, first=first)
    if kind == RESULT:
        book.effects.results[place] = body


def has_expressions(node: Node) -> bool:
    """Whether anything of the node depends on values."""
    return next(iter(node_expressions(node)), None) is not None


def body_of(book: Book, place: Place, row: NodeRow) -> bytes:
    """The input of the node's task: what was recorded for it, else what its definition says."""
    if row.own_input:
        recorded = values.get(book.tr, values.Place(place.workflow, place.node, INPUT))
        if recorded is not None:
            return recorded
    return book.terms.definitions.body(place) or _literal(book, place)


def _literal(book: Book, place: Place) -> bytes:
    node = book.definition(place)
    body = dumps({} if node.call is None or node.call.input is None else node_input(node, _NOTHING))
    book.terms.definitions.put_body(place, body)
    return body


def record_input(book: Book, place: Place, row: NodeRow, node: Node) -> None:
    """Makes the input from the node's expressions and records it. Raises: InvalidWorkflow, ValueBeyondBound."""
    write(book, place, INPUT, dumps(node_input(node, scope_of(book, place, node))))
    row.own_input = True


def element_bodies(book: Book, place: Place, node: Node) -> list[bytes]:
    """The inputs of a map's elements. Raises: InvalidWorkflow."""
    return [dumps(one) for one in element_inputs(node, scope_of(book, place, node))]


_NOTHING = Scope(None, {}, {})
