"""The restore of a workflow to a checkpoint: later nodes are stopped, compensated if they declare it, and run again.

A restore begins in the transaction of its request and goes on from stored cursors, so any owner of the shard ends it::

    stop     every node that has not ended ends as canceled; only when there is something to undo
    undo     discarded nodes with a compensation are compensated, the last completed one first
    return   the shared state becomes what it was
    discard  every discarded node waits again
    count    each of them counts its ended predecessors, and runs when they permit it (`redrive_steps`)

A discarded node keeps its row with its fence, so what its former attempts may still tell is refused. Meanwhile no end
is passed on to dependents. A compensation that fails ends the workflow as any other does; a resume goes on with both.
"""

from __future__ import annotations

from typing import Any

from coditect.errors import Retryable, VersionConflict
from coditect.model.result import Failure
from coditect.workflow.definition import AwaitSignal
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import values, versions
from dispatcher.ledger.audit import autonomy, trail
from dispatcher.ledger.audit.trail import AuditEntry
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import AGAIN, CHECKPOINTS, CONTINUATIONS, EDGES, RESTORES
from dispatcher.ledger.nodes import advance, children, compensations, limits, withdrawals
from dispatcher.ledger.nodes.attempts import RESTORED, UNDER_WAY, begin_anew, write_attempt
from dispatcher.ledger.nodes.inputs import ITERATIONS, RESULT, body_at, write
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.unit_of_work import CHILD_END, COMPENSATE, UnitOfWork
from dispatcher.ledger.workflows import control, redrive, redrive_steps, walks
from dispatcher.ledger.workflows.checkpoints import positions, requests, spaces
from dispatcher.ledger.workflows.checkpoints.positions import Position
from dispatcher.ledger.workflows.control import MOST_NAME
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import text

STOP, RETURN, DISCARD = "stop", "return", "discard"
"""The kinds of a restore's unfinished work, with a node's name or a key of shared state as the cursor."""
_DISCARDED = Failure(RESTORED, "Restored", "The workflow was restored to a checkpoint before its end")


def restore(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Begin to restore a workflow to a checkpoint, unless nodes have begun or completed since the plan of the restore.

    Raises:
        VersionConflict: when the workflow went on since the plan with the given token.
        InputError: when the workflow cannot be restored, or (NotFound) has no such checkpoint.
        Retryable: while an earlier restore, redrive or cancel is not done.
    """
    workflow, name, by = text(body, "workflow"), text(body, "checkpoint"), text(body, "by")[:MOST_NAME]
    run = control.run_of(unit, workflow)
    position = positions.find(unit.tr, unit.seen, workflow, name)
    requests.check(workflow, run)
    redrive.check_parent(unit, workflow, run)
    _check_ends_taken(unit, workflow, run)
    if text(body, "token") != requests.token_of(unit.tr, workflow, run):
        fix = "look again at what would be discarded; pause a workflow that goes on too fast"
        raise VersionConflict("The workflow went on since its restore was planned", workflow=workflow, fix=fix)
    spaces.check(unit.tr, workflow, position)
    _note(unit, workflow, name, by, position)
    paused = run.state is WorkflowState.PAUSED
    if run.state.terminal:
        redrive.reopen(unit, workflow, run)
    else:
        autonomy.note_hand(unit, workflow)
    trail.append(unit, NodeKey(workflow, ""), AuditEntry("restored", by, automatic=False, why=f"to {name}"))
    run.restoring, run.redriving = [position.at_ms, list(position.later), by, paused], True
    root = NodeKey(workflow, advance.ROOT)
    if next_compensation(unit, run, workflow) is None:
        discard(unit, root, advance.MAX_DEPENDENTS)
    else:
        run.state, run.ended = WorkflowState.COMPENSATING, WorkflowState.FAILED  # what it is if one of them fails
        stop(unit, root, "", advance.MAX_DEPENDENTS)
    return {"workflow": workflow, "checkpoint": name, "state": run.state.value}


def _check_ends_taken(unit: UnitOfWork, workflow: str, run: RunRecord) -> None:
    """Refuse a restore while the end of a child workflow has not yet been passed on to the node that ran the child.

    The restore would not undo the child.
    """
    left = (
        unit.tr.get_range(*CONTINUATIONS.range((unit.shard, workflow)), limit=advance.MAX_DEPENDENTS)
        if run.todo
        else ()
    )
    if any(CONTINUATIONS.unpack(key)[3] == CHILD_END for key, _ in left):
        raise Retryable("A sub-workflow has just ended", workflow=workflow, fix="try again in a moment")


def _note(unit: UnitOfWork, workflow: str, name: str, by: str, position: Position) -> None:
    """Record a restore, and delete the workflow's named checkpoints that are later than the one restored to."""
    row = versions.RESTORE.pack((unit.now_ms, by, name))
    unit.tr.set(RESTORES.pack((workflow, requests.restores(unit.tr, workflow) + 1)), row)
    for key, stored in unit.tr.get_range(*CHECKPOINTS.range((workflow,))):
        if versions.CHECKPOINT.unpack(stored)[0] > position.at_ms:
            unit.tr.clear(key)
    unit.effects.say("workflow.restored", workflow, checkpoint=name, by=by)


def next_compensation(unit: UnitOfWork, run: RunRecord, workflow: str) -> NodeKey | None:
    """Return the key of the compensation to run next, that of the last completed node to undo; None if none is left.

    During a restore, only nodes that the restore discards are to be undone.
    """
    if run.restoring is None:
        return compensations.last(unit, workflow)
    position = positions.read(run.restoring)
    for _, name in compensations.listed(unit, workflow):
        node_key = NodeKey(workflow, name.decode())
        row = unit.node(node_key)
        if row is None or not position.keeps(node_key.node, row):
            return compensations.of(node_key)
        if (row.finished_ms or 0) < position.at_ms:  # the list is in the order of the ends
            return None
    return None


def stop(unit: UnitOfWork, root: NodeKey, after: str, limit: int) -> int:
    """Cancel a page of the unfinished nodes that a restore discards; after the last page, have compensations begin.

    The page holds at most `most` nodes with names after `after`. Return how many were examined.
    """
    run = unit.run(root.workflow)
    if run is None or run.restoring is None or run.canceling:
        return 1
    seen, is_done = _walk(unit, root, STOP, after, limit, ended=False)
    if is_done:
        run.redriving = False  # no node is left that an end could begin
        unit.leave(root, COMPENSATE)
    return seen


def discard(unit: UnitOfWork, root: NodeKey, limit: int) -> int:
    """After all compensations, restore a workflow's shared state, and have every discarded node wait again."""
    run = unit.run(root.workflow)
    assert run is not None and run.restoring is not None
    run.redriving, run.ended, run.reason = True, None, ""
    run.state = WorkflowState.PAUSED if run.restoring[3] else WorkflowState.RUNNING
    return go_on_with_state(unit, root, "", limit)


def go_on_with_state(unit: UnitOfWork, root: NodeKey, after: str, limit: int) -> int:
    """Restore the shared state of a workflow, from the key behind `after` on; when that is done, discard nodes."""
    run = unit.run(root.workflow)
    if run is None or run.restoring is None or _is_given_up(unit, root.workflow, run):
        return 1
    last = spaces.bring_back(unit, root.workflow, positions.read(run.restoring), after, run.restoring[2])
    if last is not None:
        unit.leave(root, RETURN, last)
        return limit
    return go_on(unit, root, "", limit)


def go_on(unit: UnitOfWork, root: NodeKey, after: str, limit: int) -> int:
    """Have a page of the nodes that a restore discards wait again; after the last page, run those that may run.

    The page holds at most `most` nodes with names after `after`. Return how many were examined.
    """
    run = unit.run(root.workflow)
    if run is None or run.restoring is None or _is_given_up(unit, root.workflow, run):
        return 1
    seen, is_done = _walk(unit, root, DISCARD, after, limit, ended=True)
    if not is_done:
        return seen
    run.restoring = None
    return seen + redrive_steps.go_on(unit, root, "", max(1, limit - seen))


def _is_given_up(unit: UnitOfWork, workflow: str, run: RunRecord) -> bool:
    """Tell whether the workflow was canceled during its restore, and drop the restore if it was."""
    if not advance.is_over(run):
        return False
    unit.tr.clear_range(*AGAIN.range((workflow,)))
    run.redriving, run.restoring = False, None
    return True


def _walk(unit: UnitOfWork, root: NodeKey, kind: str, after: str, limit: int, *, ended: bool) -> tuple[int, bool]:
    """Cancel, or if `ended` reset, nodes that a restore discards; return how many nodes were examined, and if all were.

    At most `limit` nodes with names after `after` are examined.
    """
    advance.follow(unit)  # what has ended in this transaction is left over, and dropped with its node
    run = unit.run(root.workflow)
    assert run is not None and run.restoring is not None
    position = positions.read(run.restoring)

    def take_back(node_key: NodeKey, row: NodeRecord) -> None:
        if node_key.is_compensation or position.keeps(node_key.node, row):
            return
        if not row.state.terminal:
            _stop(unit, node_key, row)
        if ended:
            _discard(unit, node_key, row)

    return walks.each(unit, root, kind, take_back, after=after, limit=limit)


def _stop(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """End a node that has not ended, without releasing its dependents; an agent that has the task gets a cancel."""
    if row.state in UNDER_WAY and row.publication:
        write_attempt(unit, node_key, row, TaskState.CANCELED.value, _DISCARDED)
    children.cancel(unit, node_key, row)
    withdrawals.call_off(unit, node_key, row)
    limits.clear(unit, node_key, row)
    for kind in (advance.EVALUATE, advance.EXPAND, children.START):
        advance.drop(unit, node_key, kind)
    call = unit.call(node_key)
    if call is not None and call.repeat is not None:
        values.clear(unit.tr, values.ValueKey(*node_key, ITERATIONS))
    unit.move(node_key, row, TaskState.CANCELED)
    row.finished_ms, row.reason = unit.now_ms, RESTORED


def _discard(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Have an ended node wait again, as if it had never begun, but for its fence and the history of its attempts.

    An element of a map stays canceled until the map makes an element of that number again. A signal that the node had
    taken stays the node's.
    """
    signal = body_at(unit.tr, node_key, RESULT) if _took_signal(unit, node_key, row) else None
    if row.reason != RESTORED:
        _forget_end(unit, node_key, row)
    begin_anew(unit, node_key, row)
    if signal is not None:
        write(unit, node_key, RESULT, signal)
    if row.fence:
        unit.advance_fence(row)
    row.reason = RESTORED
    if node_key.is_element:
        row.finished_ms = unit.now_ms
        unit.move(node_key, row, TaskState.CANCELED)
        return
    unit.move(node_key, row, TaskState.BLOCKED)
    unit.tr.set(AGAIN.pack((node_key.workflow, redrive_steps.COUNT, node_key.node)), b"")


def _forget_end(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Undo what a node's end caused: the unfinished release of its dependents, and its part in the workflow's end."""
    is_left = advance.drop(unit, node_key, advance.RELEASE)
    if node_key.is_derived or is_left:
        return
    if not unit.tr.snapshot.get_range(*EDGES.range((node_key.workflow, node_key.node)), limit=1):
        run = unit.run(node_key.workflow)
        assert run is not None
        run.lasts[row.state.value] -= 1


def _took_signal(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> bool:
    return row.state is TaskState.COMPLETED and isinstance(unit.definition(node_key).work, AwaitSignal)
