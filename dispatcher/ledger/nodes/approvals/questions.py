"""The questions to a person: of approval nodes, and of tasks that the approval policy asks about."""

from __future__ import annotations

from typing import Any

from coditect.wire.json import loads
from coditect.workflow.documents.document import known_node
from coditect.workflow.states import TaskState
from dispatcher.ledger import definitions, timers, values, versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import APPROVALS, WORKFLOWS
from dispatcher.ledger.nodes.inputs import INPUT, RESULT
from dispatcher.ledger.rows import NodeRecord, WorkflowRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import ValueKey
from dispatcher.store.transaction import Reads

TIMER = "approval"
LISTED_BYTES, LISTED_RESULTS = 300, 5
"""The longest value, as JSON, that a list of questions and an event show whole, and how many results they show."""
SHOWN_BYTES, SHOWN_RESULTS = 20_000, 20
"""The same where a single question is shown."""


def ask(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, question: str, timeout_ms: int | None) -> None:
    """Have a node await approval: list its question as open, and set the timer of its timeout, if it has one."""
    row.ready_ms = unit.now_ms
    unit.move(node_key, row, TaskState.AWAITING_APPROVAL)
    unit.tr.set(APPROVALS.pack((unit.now_ms, node_key.workflow, node_key.node)), question.encode())
    if timeout_ms is not None:
        unit.set_timer(Timer(node_key.workflow, node_key.node, TIMER, unit.now_ms + timeout_ms))


def close(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Remove a node's question from the list of open ones, and cancel its timeout."""
    unit.tr.clear(APPROVALS.pack((row.ready_ms or 0, node_key.workflow, node_key.node)))
    timers.cancel(unit.tr, node_key.workflow, node_key.node, TIMER)


def subject(tr: Reads, node_key: NodeKey, *, max_bytes: int, max_results: int) -> dict[str, Any]:
    """Return what a question is about: labels and input of the workflow, the node's input, its predecessors' results.

    A value whose JSON is longer than `max_bytes` is given as text that ends with an ellipsis.
    """
    head = tr.get(WORKFLOWS.pack((node_key.workflow,)))
    document = definitions.find(tr, node_key.defined)
    node = None if document is None else known_node(node_key.defined.node, versions.NODE_DOCUMENT.unpack(document))
    predecessors = [] if node is None else [edge.node for edge in node.after][:max_results]
    results = {name: _shown(tr, NodeKey(node_key.workflow, name), RESULT, max_bytes) for name in predecessors}
    own = _shown(tr, node_key, INPUT, max_bytes)
    return {
        "labels": {} if head is None else dict(WorkflowRecord.unpack(head).labels),
        "workflow_input": _shown(tr, NodeKey(node_key.workflow, ""), INPUT, max_bytes),
        "input": node.input if own is None and node is not None else own,
        "results": {name: result for name, result in results.items() if result is not None},
    }


def _shown(tr: Reads, node_key: NodeKey, kind: str, max_bytes: int) -> Any:
    found = values.beginning(tr, ValueKey(node_key.workflow, node_key.node, kind), max_bytes=max_bytes)
    if found is None:
        return None
    value, size_bytes = found
    return loads(value) if size_bytes <= max_bytes else f"{value.decode(errors='ignore')}…"
