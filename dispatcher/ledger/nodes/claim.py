"""The claim: the transaction that takes a ready node and gives its task to the outbox, to be published.

A claim is a transaction of the shard's owner that finds the node ready, or has just made it so, gives it a new
publication number and a new fence, and writes the outbox. Nothing else publishes a node, so no node runs early, and two
runs of a node have two fences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coditect.errors import NewerVersion
from coditect.model.capability import Priority
from coditect.model.ids import TaskId
from coditect.model.task import Limits, Owner, Task
from coditect.wire.routing import task_key
from coditect.wire.tasks import has_claims
from coditect.workflow.definition import Call
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import outbox
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import FLIGHTS, READY
from dispatcher.ledger.nodes import limits
from dispatcher.ledger.nodes.approvals import judging
from dispatcher.ledger.nodes.attempts import DIED, forget_restore, is_unreported
from dispatcher.ledger.nodes.inputs import body_of, failure_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork

LEVELS = tuple(Priority)
RETRY_TIMER = "retry"


def offer(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Make a node ready if approvals permit; publish its task if capacity is free and no other waits, else queue it.

    A node of a paused workflow becomes ready outside of the backlog. A task that the approval policy asks about, or
    refuses, does not become ready.
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
    _wait(unit, node_key, row, call)


def _wait(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, call: Call) -> None:
    unit.move(node_key, row, TaskState.READY)
    unit.tr.set(_ready_key(unit, node_key, row, call), b"")
    unit.note_backlog(call.capability)


def claim(unit: UnitOfWork, node_key: NodeKey) -> bool:
    """Take a ready node off its backlog, and publish it unless its workflow is paused or canceled; return False if not.

    Return False, and change nothing, when the node is not ready, or its workflow has ended.
    """
    row, run = unit.node(node_key), unit.run(node_key.workflow)
    if row is None or run is None or row.state is not TaskState.READY or run.state.terminal:
        return False
    leave_backlog(unit, node_key, row)
    if run.state is WorkflowState.PAUSED or run.canceling:
        return False
    publish(unit, node_key, row)
    return True


def backlog(unit: UnitOfWork, capability: str, limit: int) -> Iterator[NodeKey]:
    """Yield the ready nodes in a capability's backlog, urgent ones first, then the oldest, `limit` + 1 by each read.

    A node that becomes ready while its workflow is paused is not in the backlog.
    """
    begin, end = READY.range((unit.shard, capability))
    while found := unit.tr.get_range(begin, end, limit=limit + 1):
        yield from (NodeKey(*READY.unpack(key)[4:6]) for key, _ in found)
        if len(found) <= limit:
            return
        begin = found[-1][0] + b"\0"


def is_readable(unit: UnitOfWork, node_key: NodeKey) -> bool:
    """Tell whether this dispatcher can read the node's row; False if a newer dispatcher wrote it in a newer version."""
    try:
        unit.node(node_key)
    except NewerVersion:
        return False
    return True


def publish(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, *, agent: str = "") -> None:
    """Add the node's task to the outbox with a new publication number and fence, for `agent` or else for any agent."""
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
    key = task_key(call.capability, call.priority)
    unit.tr.set(FLIGHTS.pack((unit.shard, node_key.workflow, node_key.node)), key.encode())
    outbox.put(unit.tr, unit.shard, outbox.Row(row.publication, node_key.workflow, node_key.node, row.fence))
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


def leave_backlog(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Remove a ready node from the backlog of its capability."""
    unit.tr.clear(_ready_key(unit, node_key, row, _call(unit, node_key)))


def _ready_key(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, call: Call) -> bytes:
    level = LEVELS.index(call.priority)
    return READY.pack((unit.shard, call.capability, level, row.ready_ms or 0, node_key.workflow, node_key.node))


def _call(unit: UnitOfWork, node_key: NodeKey) -> Call:
    call = unit.call(node_key)
    assert call is not None
    return call
