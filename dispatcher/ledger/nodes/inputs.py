"""The inputs of nodes: the values that a node's expressions read from the ledger, and the input they compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from coditect.errors import CoditectError
from coditect.model.result import Failure
from coditect.wire.json import dumps, loads
from coditect.workflow.approvals.policy import artifacts_of
from coditect.workflow.definition import Approval, Call, Each, Node, SubWorkflow, WaitUntil
from coditect.workflow.expressions import (
    CHARACTERS_PER_STEP,
    Account,
    Scope,
    condition_holds,
    element_inputs,
    instant_of,
    node_input,
)
from coditect.workflow.states import TaskState
from coditect.workflow.template import node_expressions
from dispatcher.ledger import values
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue, ValueBeyondBound
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import BYTES_PER_STEP, UnitOfWork
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.store.transaction import Reads

INPUT = "input"
RESULT = "result"
FAILURE = "failure"
ITERATIONS = "iterations"
"""The kind of stored value that holds the number of ended iterations of a node with a loop."""
MOST_SEEN_BYTES = 8 * 1024 * 1024
"""The largest size in bytes of all values that one node's expressions read, since they are in memory at once."""
_MESSAGE_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Inputs:
    """The values computed from a node's expressions: whether its condition holds, and inputs, instant or artifacts."""

    holds: bool
    """Whether the node's condition is true, so that the node runs; True without a condition."""
    bodies: Sequence[bytes] | None = None
    """The encoded input of the node's task, or of each task of a map; None when no expression gives it."""


NO_EXPRESSIONS = Inputs(True)


def inputs_of(node: Node, scope: Scope, account: Account, *, has_elements: bool = False) -> Inputs:
    """Evaluate a node's condition and, if it holds, its other expressions, but not the list of a map that has elements.

    Raises:
        InputError: when an expression has no value.
    """
    if not condition_holds(node, scope, account):
        return Inputs(False)
    match node.work:
        case Call() | SubWorkflow():
            return Inputs(True, (dumps(node_input(node, scope, account)),))
        case Each() if not has_elements:
            return Inputs(True, gathered(map(dumps, element_inputs(node, scope, account))))
        case WaitUntil():
            return Inputs(True, (dumps(instant_of(node, scope, account)),))
        case Approval(artifacts=required) if required:
            return Inputs(True, (dumps(artifacts_of(required, scope, account)),))
        case _:
            return NO_EXPRESSIONS


def before(node: Node, workflow: str) -> list[NodeKey]:
    """Return the node keys of a node's predecessors, in the order of its definition."""
    return [NodeKey(workflow, edge.node) for edge in node.after]


def scope_of(tr: Reads, node_key: NodeKey, node: Node, rows: Sequence[NodeRecord | None], account: Account) -> Scope:
    """Return the values that a node's expressions read: the workflow's input, and the predecessors' results and states.

    Reading costs evaluation steps of the account, too.

    Raises:
        ValueBeyondBound: when the values are more than `MOST_SEEN_BYTES`.
        DamagedValue: when a value is not what was written.
        InputError: when the account has too few steps.
    """
    names = [edge.node for edge in node.after]
    states = {name: row.state for name, row in zip(names, rows, strict=True) if row is not None}
    having = [name for name, state in states.items() if state is TaskState.COMPLETED]
    wanted = [(name, RESULT) for name in having] + [("", INPUT)]
    bodies = values.read_all(tr, [values.ValueKey(node_key.workflow, *place) for place in wanted])
    seen: list[Any] = []
    seen_bytes = 0
    for found in bodies:
        body = found or b"null"
        seen_bytes += len(body)
        if seen_bytes > MOST_SEEN_BYTES:
            fix = "return references in place of large values, or let the node come after fewer"
            raise ValueBeyondBound(
                "The node's expressions see too much", node=node_key.node, most_bytes=MOST_SEEN_BYTES, fix=fix
            )
        account.charge(len(body) // CHARACTERS_PER_STEP)
        seen.append(loads(body))
    results = dict.fromkeys(states) | dict(zip(having, seen, strict=False))
    return Scope(seen[-1], results, {name: state.value for name, state in states.items()})


def failure_of(error: CoditectError) -> Failure:
    """Return the failure that ends a node whose expressions or stored values raised the given error."""
    reason = "expression"
    if isinstance(error, DamagedValue):
        reason = "damaged_value"
    elif isinstance(error, ValueBeyondBound):
        reason = "too_large"
    message, fix = str(error)[:_MESSAGE_CHARACTERS], str(error.facts.get("fix", ""))
    return Failure(reason, type(error).__name__, message, fix=fix)


def body_at(tr: Reads, node_key: NodeKey, kind: str) -> bytes | None:
    """Return a node's stored value of one kind, such as its input or result, as JSON bytes; None when there is none.

    Raises:
        DamagedValue: when the value is not what was written.
    """
    return values.get(tr, values.ValueKey(node_key.workflow, node_key.node, kind))


def value_of(tr: Reads, node_key: NodeKey, kind: str) -> Any:
    """Return a node's stored value of one kind, such as its result, decoded from JSON; None when there is none.

    Raises:
        DamagedValue: when the value is not what was written.
    """
    body = body_at(tr, node_key, kind)
    return None if body is None else loads(body)


def gathered(bodies: Iterable[bytes]) -> list[bytes]:
    """Collect a list's elements, each as JSON bytes; raise an error once the list is larger than one value may be.

    Raises:
        ValueBeyondBound: when the list is too large.
    """
    taken: list[bytes] = []
    size_bytes = 1
    for body in bodies:
        size_bytes += len(body) + 1
        if size_bytes > LARGEST_BYTES:
            fix = "use references in place of values: a URL, a path"
            raise ValueBeyondBound("A list is too large", of=len(taken) + 1, most_bytes=LARGEST_BYTES, fix=fix)
        taken.append(body)
    return taken


def list_of(bodies: Iterable[bytes]) -> bytes:
    """Join values that are already encoded as JSON into the bytes of one JSON list."""
    return b"[" + b",".join(bodies) + b"]"


def write(unit: UnitOfWork, node_key: NodeKey, kind: str, body: bytes, *, first: bool = False) -> None:
    """Store a node's value of one kind, such as its result; `first` says that the node never had a value of the kind.

    Raises:
        ValueBeyondBound: when the value is larger than one value may be.
    """
    values.put(unit.tr, values.ValueKey(node_key.workflow, node_key.node, kind), body, first=first)
    if kind == RESULT:
        unit.effects.results[node_key] = body


def has_expressions(node: Node) -> bool:
    """Tell whether a node is a map, or has an expression: condition, input, approval artifacts or wait instant."""
    return isinstance(node.work, Each) or next(iter(node_expressions(node)), None) is not None


def body_of(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> bytes:
    """Return the input of the node's task as JSON bytes: the recorded input, else the one in the definition."""
    if row.own_input:
        recorded = body_at(unit.tr, node_key, INPUT)
        if recorded is not None:
            unit.steps += len(recorded) // BYTES_PER_STEP
            return recorded
    return dumps(plain_input(unit.definition(node_key)))


def plain_input(node: Node) -> Any:
    """Return the input of a node without expressions, as its definition gives it: an empty object if it gives none."""
    return {} if node.input is None else node_input(node, NOTHING)


NOTHING = Scope(None, {}, {})
"""The empty scope for a node without expressions, which has no values to read."""
