"""The handlers of due timers, and of published tasks that the broker returned because no queue takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coditect.model.result import Failure
from coditect.workflow.definition import Approval, OnTimeout
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Due, Finished, NoQueue
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.handlers import finish
from dispatcher.ledger.nodes import advance, children, claim, limits, waits, withdrawals
from dispatcher.ledger.nodes.approvals import decisions, questions
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control

NO_QUEUE_MS = 1_000
"""The milliseconds after which a node whose task no queue took is ready again, and waits for capacity."""


def due(unit: UnitOfWork, command: Due) -> None:
    """Carry out a due timer of a node that has not ended, if it is still set: for example retry the node, or end it."""
    timer = command.timer
    if not timers.finish(unit.tr, timer):
        return
    node_key = NodeKey(timer.workflow, timer.node)
    row = unit.node(node_key)
    act = _KINDS.get(timer.kind)
    if row is not None and act is not None and not row.state.terminal:
        act(unit, node_key, row, timer)


def _try_again(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, _: Timer) -> None:
    if row.state is TaskState.RETRY_WAIT:
        _offer(unit, node_key, row)


def _offer(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    if advance.is_over(unit.run(node_key.workflow)):
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
    else:
        children.run_again(unit, node_key, row)


def _answer(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, _: Timer) -> None:
    if row.state is not TaskState.AWAITING_APPROVAL:
        return
    work, asked = unit.definition(node_key).work, decisions.read(unit.tr, node_key)
    of_policy = OnTimeout.REJECT if asked is None else OnTimeout(asked.on_timeout)
    on_timeout = work.on_timeout if isinstance(work, Approval) else of_policy
    decision = decisions.GRANTED if on_timeout is OnTimeout.GRANT else decisions.DENIED
    control.settle(unit, node_key, row, decision, by=decisions.TIMEOUT)


def _waited(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, _: Timer) -> None:
    if row.state is not TaskState.WAITING:
        return
    waits.note_end(unit, node_key, row)
    if unit.call(node_key) is None:
        advance.end(unit, node_key, row, TaskState.COMPLETED)
    else:
        _offer(unit, node_key, row)


def _not_signaled(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, _: Timer) -> None:
    if row.state is TaskState.WAITING:
        waits.close(unit, node_key, row)
        advance.fail(unit, node_key, row, waits.NO_SIGNAL)


def _not_started(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, timer: Timer) -> None:
    """Fail a node not started by its latest start, unless it is ready in a paused workflow, or is being canceled."""
    run = unit.run(node_key.workflow)
    paused = run is not None and run.state is WorkflowState.PAUSED and row.state is TaskState.READY
    waits = row.start_by_ms is not None and row.start_by_ms + limits.START_GRACE_MS == timer.due_ms
    if waits and row.state is not TaskState.WORKING and not paused:
        _give_up(unit, node_key, row, limits.by_our_clock(unit, limits.START_TIMEOUT))


def _not_told(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, timer: Timer) -> None:
    if row.state is TaskState.WORKING and row.fence == timer.fence:
        unit.effects.cancels.append((node_key, row.publication))
        finish.finished(unit, Finished(node_key, row.fence, row.publication, limits.overdue(row), reported=False))
        unit.advance_fence(row)  # what its agent may still tell is late


def _not_ended(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, timer: Timer) -> None:
    if row.deadline_ms == timer.due_ms:
        _give_up(unit, node_key, row, limits.by_our_clock(unit, limits.DEADLINE))


def _give_up(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, failure: Failure) -> None:
    if not advance.is_over(unit.run(node_key.workflow)):  # the cancel ends it
        withdrawals.call_off(unit, node_key, row)
        advance.fail(unit, node_key, row, failure)


_KINDS: Mapping[str, Callable[[UnitOfWork, NodeKey, NodeRecord, Timer], None]] = {
    claim.RETRY_TIMER: _try_again,
    questions.TIMER: _answer,
    waits.WAIT_TIMER: _waited,
    waits.SIGNAL_TIMER: _not_signaled,
    limits.START_TIMER: _not_started,
    limits.TIMEOUT_TIMER: _not_told,
    limits.DEADLINE_TIMER: _not_ended,
}
"""The handler of each kind of a node's timers."""


def no_queue(unit: UnitOfWork, command: NoQueue) -> None:
    """Let a node whose task no queue takes be ready again after 1 s; ignore an outdated notice."""
    node_key = command.node_key
    row = unit.node(node_key)
    if row is None or row.state is not TaskState.PUBLISHED or row.publication != command.publication:
        return
    row.reason = "no_queue"
    unit.move(node_key, row, TaskState.RETRY_WAIT)
    timer = Timer(node_key.workflow, node_key.node, claim.RETRY_TIMER, unit.now_ms + NO_QUEUE_MS, row.fence)
    unit.set_timer(timer)
