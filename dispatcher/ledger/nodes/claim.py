"""The claim: the transaction that takes a ready node, so that its task is published after the commit.

A claim is a transaction of the shard's owner that finds the node ready, or has just made it so, and gives it a new
publication number and a new fence. Nothing else publishes a node, so no node runs early, and two runs of a node have
two fences.
"""

from __future__ import annotations

from typing import Any

from coditect.errors import NewerVersion
from coditect.model.ids import TaskId
from coditect.model.task import Limits, Owner, Task
from coditect.wire.tasks import has_claims
from coditect.workflow.definition import Call
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.nodes import limits
from dispatcher.ledger.nodes.approvals import judging
from dispatcher.ledger.nodes.attempts import DIED, forget_restore, is_unreported
from dispatcher.ledger.nodes.inputs import body_of, failure_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork

RETRY_TIMER = "retry"


def offer(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Make a node ready if approvals permit; publish its task if capacity is free and no other waits, else queue it.

    A node of a paused workflow becomes ready, and is offered again by the resume. A task that the approval policy asks
    about, or refuses, does not become ready.
    """
    call = _call(unit, node_key)
    if unit.policy.approvals is not None and not judging.may_go(unit, node_key, row, call):
        return
    run = unit.run(node_key.workflow)
    row.ready_ms = unit.now_ms
    if run is not None and run.state is WorkflowState.PAUSED:
        unit.move(node_key, row, TaskState.READY)
        return
    if unit.may_publish(call.capability):
        publish(unit, node_key, row, agent=unit.take_free(call.capability))
        return
    limits.wait(unit, node_key, row, call)
    unit.move(node_key, row, TaskState.READY)
    unit.backlog.add(call.capability)
    unit.effects.waiting.add(node_key)


def claim(unit: UnitOfWork, node_key: NodeKey) -> bool:
    """Publish a ready node; return False, and change nothing, if it is not ready, or its workflow does not go on."""
    row, run = unit.node(node_key), unit.run(node_key.workflow)
    if row is None or run is None or row.state is not TaskState.READY or run.state.terminal:
        return False
    if run.state is WorkflowState.PAUSED or run.canceling:
        return False
    publish(unit, node_key, row)
    return True


def is_readable(unit: UnitOfWork, node_key: NodeKey) -> bool:
    """Tell whether this dispatcher can read the node's row; False if a newer dispatcher wrote it in a newer version."""
    try:
        unit.node(node_key)
    except NewerVersion:
        return False
    return True


def publish(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, *, agent: str = "") -> None:
    """Publish the node's task after the commit, under a new number and fence, for `agent` or else for any agent."""
    call = _call(unit, node_key)
    try:
        body = body_of(unit, node_key, row)
    except DamagedValue as error:
        unit.unfit.append((node_key, failure_of(error)))
        return
    limits.wait(unit, node_key, row, call)
    unit.advance_fence(row)
    forget_restore(row)
    before, row.publication = row.publication, unit.next_number(call.capability)
    row.published_ms = unit.now_ms
    row.started_ms, row.agent = None, ""
    unit.move(node_key, row, TaskState.PUBLISHED)
    unit.effects.publications.append(
        Publication(node_key, row.publication, _task(unit, node_key, row, call, body), agent, before)
    )


def _task(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, call: Call, body: bytes) -> Task:
    task_id, run = TaskId(node_key.task_id), unit.run(node_key.workflow)
    most_attempts = None if call.retry is None else call.retry.max_attempts
    return Task(
        call.capability,
        call.priority,
        body,
        id=task_id,
        correlation_id=task_id,
        limits=Limits(row.deadline_ms, row.start_by_ms, call.timeout_ms, most_attempts),
        attempt=row.attempt,
        publication=row.publication,
        published_at_ms=None if _must_ask(unit, node_key, row, call) else unit.now_ms,
        errors=_died(row) if row.suspect and not row.losses else (),
        owner=Owner(node_key.workflow, node_key.node, str(unit.shard), row.fence),
        claims=body if has_claims(body) else None,
        **({} if run is None else run.trace),
    )


def _must_ask(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, call: Call) -> bool:
    """Tell whether the agent must ask before it runs the task; it asks if the task has no instant of publication.

    If no agent reported the end of the last attempt, only such a claim shows whether the capability's policy permits
    another one.
    """
    if row.suspect or row.doubted:
        return True
    return row.attempt > 1 and call.retry is None and is_unreported(unit, node_key)


def _died(row: NodeRecord) -> tuple[Any, ...]:
    """Return the error history of a task of which an attempt was lost: one entry, for the last attempt."""
    error = "No agent reported the end of an attempt"
    return ({"agent": None, "attempt": row.attempt - 1, "type": "AgentLost", "message": error, "reason": DIED.reason},)


def _call(unit: UnitOfWork, node_key: NodeKey) -> Call:
    call = unit.call(node_key)
    assert call is not None
    return call
