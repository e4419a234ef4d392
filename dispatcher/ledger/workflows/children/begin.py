"""The start of a child workflow by a node of its parent, and the cancel of the child."""

from __future__ import annotations

from typing import Any

from coditect.errors import InputError
from coditect.model.result import Failure
from coditect.wire.headers import WORKFLOW_ID, WORKFLOW_NAME, with_members, workflow_members
from coditect.workflow.definition import SubWorkflow
from coditect.workflow.graph import MOST_CHILDREN, MOST_DEPTH
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.nodes import advance, children, library
from dispatcher.ledger.nodes.inputs import body_of, failure_of
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.rows import NodeRecord, ParentNode, RunRecord, WorkflowRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control, submit

LIMIT = "sub_workflow_limit"
"""The reason of a node that failed because its child would be nested too deep, or be one child too many."""


def start(unit: UnitOfWork, node_key: NodeKey, _: str, limit: int) -> int:
    """Start the child workflow of a node that has begun; return the child's number of nodes, or 1 if none starts."""
    row, run = unit.node(node_key), unit.run(node_key.workflow)
    if row is None or run is None or row.state is not TaskState.WORKING:
        return 1
    if advance.is_over(run):
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
        return 1
    try:
        return _start(unit, node_key, row, run)
    except (InputError, DamagedValue) as error:
        advance.fail(unit, node_key, row, failure_of(error))
        return 1


def _start(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, run: RunRecord) -> int:
    head, work = unit.workflow(node_key.workflow), unit.definition(node_key).work
    assert head is not None and isinstance(work, SubWorkflow)
    root = node_key.workflow if head.parent is None else head.parent.root
    depth = 1 if head.parent is None else head.parent.depth + 1
    counted = unit.run(root)
    if (failure := _beyond(depth, counted)) is not None or counted is None:
        advance.fail(unit, node_key, row, failure or NO_ROOT)
        return 1
    document = library.find(unit, root)[work.workflow]  # of all names it was checked that they are there
    child = _id(unit, node_key, row)
    description, nodes = document["description"], document["nodes"]
    parent = ParentNode(*node_key, root, depth)
    own = WorkflowRecord(unit.shard, work.workflow, description, "", len(nodes), unit.now_ms, parent=parent)
    begun = submit.start_known(
        unit, child, own, body_of(unit, node_key, row), nodes, trace=_trace(run, child, work.workflow)
    )
    if run.state is WorkflowState.PAUSED:
        begun.state = WorkflowState.PAUSED
    children.note(unit, node_key, row, child)
    counted.children += 1
    return len(nodes)


def _trace(run: RunRecord, child: str, name: str) -> dict[str, Any]:
    """Return the trace headers of a parent's run for its child, whose spans bear the child's id and name."""
    baggage = run.trace.get("baggage")
    if not workflow_members(baggage):
        return run.trace
    return run.trace | {"baggage": with_members(baggage, {WORKFLOW_ID: child, WORKFLOW_NAME: name})}


NO_ROOT = Failure(LIMIT, "SubWorkflowLimit", "The workflow that began it is gone")


def _beyond(depth: int, counted: RunRecord | None) -> Failure | None:
    if depth > MOST_DEPTH:
        fix = "let it end by a condition: `when`"
        return Failure(LIMIT, "SubWorkflowLimit", f"It would run more than {MOST_DEPTH} workflows deep", fix=fix)
    if counted is not None and counted.children >= MOST_CHILDREN:
        message = f"The workflow that was started has run {MOST_CHILDREN:,} sub-workflows already"
        return Failure(LIMIT, "SubWorkflowLimit", message, fix="use a map, or start workflows of their own")
    return None


def _id(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> str:
    count = shards.fixed_count(unit.tr.snapshot)
    return shards.drawn_id(f"child {node_key.task_id} {row.fence}", unit.now_ms, unit.shard, count)


def cancel(unit: UnitOfWork, node_key: NodeKey, child: str, limit: int) -> int:
    """Cancel a child workflow that a node runs, or ran before a restore; the reason is that of the parent's cancel."""
    run = unit.run(node_key.workflow)
    if run is None or unit.run(child) is None:
        return 1
    control.cancel(unit, {"workflow": child, "reason": run.reason, "compensate": not run.keeps})
    return min(limit, advance.MAX_DEPENDENTS)
