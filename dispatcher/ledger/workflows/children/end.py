"""The end of a child workflow, which ends the node of its parent, or has the node run another child."""

from __future__ import annotations

from collections.abc import Sequence

from coditect.errors import InputError
from coditect.model.result import Failure
from coditect.wire.json import dumps
from coditect.workflow.definition import COMPENSATION, SubWorkflow
from coditect.workflow.graph import MOST_CHILD_NODES
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import values
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue, ValueBeyondBound
from dispatcher.ledger.keyspace import EDGES, NODES
from dispatcher.ledger.nodes import advance, children, claim
from dispatcher.ledger.nodes.attempts import BY_OTHERS, write_attempt
from dispatcher.ledger.nodes.inputs import FAILURE, RESULT, failure_of, value_of, write
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import LARGEST_BYTES

REASON = "sub_workflow"
"""The reason of a node whose child ended without a result."""
_NO_FAILURE = frozenset({TaskState.COMPLETED, TaskState.SKIPPED})


def ended(unit: UnitOfWork, node_key: NodeKey, _: str, __: int) -> int:
    """End the node, or its compensation, whose latest child workflow has ended, or plan to start another child.

    The end of an earlier child changes nothing.

    Several children of a node may have ended since, by one piece of unfinished work: the present one is looked at.
    """
    row, child = unit.node(node_key), children.current(unit, node_key)
    run = None if child is None else unit.run(child)
    if row is None or child is None or run is None or not run.state.terminal:
        return 1
    if row.state is TaskState.WORKING:
        _end_node(unit, node_key, row, child)
    elif row.state is TaskState.COMPLETED and run.ended is not None:
        _end_compensation(unit, NodeKey(node_key.workflow, node_key.node + COMPENSATION), child, run)
    return MOST_CHILD_NODES // 10  # its nodes were looked through


def _end_node(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, child: str) -> None:
    run = unit.run(child)
    assert run is not None
    if run.state is WorkflowState.COMPLETED:
        try:
            write(unit, node_key, RESULT, _result(unit, child))
        except (InputError, DamagedValue) as error:
            advance.fail(unit, node_key, row, failure_of(error))
        else:
            advance.end(unit, node_key, row, TaskState.COMPLETED)
        return
    run.restoring = None  # a restore that failed is over: the parent goes on without the child
    state = run.ended or run.state
    if advance.is_over(unit.run(node_key.workflow)) or state is WorkflowState.CANCELED:
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
        return
    failure = _failure(unit, child, run)
    if state is WorkflowState.REJECTED:
        advance.fail(unit, node_key, row, failure, state=TaskState.REJECTED)
    elif (delay_ms := _retry_ms(unit, node_key, row, run)) is not None:
        write_attempt(unit, node_key, row, "failed", failure)
        row.attempt += 1
        unit.move(node_key, row, TaskState.RETRY_WAIT)
        timer = Timer(node_key.workflow, node_key.node, claim.RETRY_TIMER, unit.now_ms + delay_ms, row.fence)
        unit.set_timer(timer)
    else:
        advance.fail(unit, node_key, row, failure)


def _end_compensation(unit: UnitOfWork, node_key: NodeKey, child: str, run: RunRecord) -> None:
    row = unit.node(node_key)
    if row is None or row.state is not TaskState.WORKING:
        return
    if run.state is WorkflowState.COMPENSATED:
        advance.end(unit, node_key, row, TaskState.COMPLETED)
    elif advance.is_over(unit.run(node_key.workflow)):
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
    else:
        advance.fail(unit, node_key, row, _failure(unit, child, run))


def _retry_ms(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, run: RunRecord) -> int | None:
    """Return the delay in milliseconds before a node's next child workflow, by its retry policy; None if none follows.

    A child that could not undo what it did is followed by none: a person has to look.
    """
    work = unit.definition(node_key).work
    policy = work.retry if isinstance(work, SubWorkflow) else None
    if policy is None or row.attempt >= policy.max_attempts or run.state is WorkflowState.COMPENSATION_FAILED:
        return None
    return round(1000 * policy.delay_seconds(row.attempt, unit.chance))


def _names(unit: UnitOfWork, child: str) -> list[str]:
    rows = unit.tr.snapshot.get_range(*NODES.range((child,)), limit=MOST_CHILD_NODES)
    return [str(NODES.unpack(key)[1]) for key, _ in rows]


def _result(unit: UnitOfWork, child: str) -> bytes:
    """Return a completed child workflow's result: that of its only node without dependents, or of several by node name.

    Raises:
        ValueBeyondBound: when it is larger than one value may be.
        DamagedValue: when a value is not what was written.
    """
    names = _names(unit, child)
    edges = unit.tr.snapshot.get_ranges([EDGES.range((child, name)) for name in names], limit=1)
    last = [name for name, following in zip(names, edges, strict=True) if not following]
    bodies, size_bytes = list[bytes](), 0
    for body in values.read_all(unit.tr.snapshot, [values.ValueKey(child, name, RESULT) for name in last]):
        bodies.append(body or b"null")
        size_bytes += len(bodies[-1])
        if size_bytes > LARGEST_BYTES:
            fix = "return references in place of values: a URL, a path"
            raise ValueBeyondBound("The sub-workflow's result is too large", most_bytes=LARGEST_BYTES, fix=fix)
    if len(bodies) == 1:
        return bodies[0]
    return b"{%b}" % b",".join(b"%b:%b" % (dumps(name), body) for name, body in zip(last, bodies, strict=True))


def _failure(unit: UnitOfWork, child: str, run: RunRecord) -> Failure:
    """Return the failure for a node whose child workflow ended without a result, with the child's first failed node."""
    fix = f"coditect workflow get {child}"
    message = f"The sub-workflow {child} is {run.state.value}"
    first = _first_failed(unit, child, _names(unit, child))
    return Failure(REASON, "SubWorkflowFailed", f"{message}: {first}" if first else message, fix=fix)


def _first_failed(unit: UnitOfWork, child: str, names: Sequence[str]) -> str:
    rows = unit.seen([NodeKey(child, name) for name in names])
    failed = [
        (row.finished_ms or 0, name, row.reason)
        for name, row in zip(names, rows, strict=True)
        if row is not None and row.state.terminal and row.state not in _NO_FAILURE and row.reason != BY_OTHERS
    ]
    if not failed:
        return ""
    _, name, reason = min(failed)
    failure = value_of(unit.tr.snapshot, NodeKey(child, name), FAILURE) or {}
    return f"{name}: {failure.get('message') or reason}"
