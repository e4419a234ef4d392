"""The time limits of a node: the latest start, the longest run of an attempt, and the deadline of the node.

=============  ==============  ===================================  ==================================================
timer          the node's      is set                               when it is due
=============  ==============  ===================================  ==================================================
``start``      `start_within`  when an attempt is ready             a node that has not started ends, reason
                                                                    `start_timeout`
``timeout``    `timeout`       when an agent reports its start      the attempt has failed, reason `timeout`
``deadline``   `deadline`      when the first attempt is ready      the node ends, reason `deadline`
=============  ==============  ===================================  ==================================================

A `heartbeat` is no timer: the orphan detector watches it. Agents keep the same limits, which travel with the task; the
timers are for tasks that no agent has, and fire only while reports of agents arrive (`dispatcher.shards.timers`). A
node without such a setting has no timer, and costs nothing.
"""

from __future__ import annotations

from dataclasses import replace

from coditect.model.result import Failure, Outcome, Status
from coditect.wire.json import dumps
from coditect.workflow.definition import Call
from coditect.workflow.states import TaskState
from dispatcher.ledger import timers
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.attempts import ATTEMPT_TIMEOUT
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork

START_TIMER, TIMEOUT_TIMER, DEADLINE_TIMER = "start", "timeout", "deadline"
TIME_LIMIT_TIMERS = frozenset({START_TIMER, TIMEOUT_TIMER, DEADLINE_TIMER})
START_GRACE_MS = 1_000
"""The milliseconds after a node's latest start in which a report of a start in time may still arrive."""
TIMEOUT_GRACE_MS = 60_000
"""The milliseconds after an attempt's timeout in which its agent, which ends it itself, may still report the end."""
START_TIMEOUT = Failure(
    "start_timeout", "TaskExpired", "No agent started it within its start_within", fix="add agents, or give it longer"
)
DEADLINE = Failure("deadline", "TaskExpired", "It had not ended by its deadline")
"""The failure of a node whose deadline passed; `deadline` completes its message, as `start_timeout` START_TIMEOUT's."""
_BY_TIME = ("expired", "timeout")
"""The failure reasons by which an agent reports that a time limit ended an attempt or prevented its start."""


def wait(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, call: Call) -> None:
    """Set the timers of the deadline and latest start of a node that waits to start, if its definition has them.

    A deadline that is set is kept; a latest start is set again when an attempt was begun.
    """
    row.heartbeat_ms = call.heartbeat_ms
    if call.deadline_ms is not None and row.deadline_ms is None:
        row.deadline_ms = unit.now_ms + call.deadline_ms
        unit.set_timer(Timer(node_key.workflow, node_key.node, DEADLINE_TIMER, row.deadline_ms))
    if call.start_within_ms is not None and (row.start_by_ms is None or row.state is TaskState.WORKING):
        row.start_by_ms = unit.now_ms + call.start_within_ms
        unit.set_timer(Timer(node_key.workflow, node_key.node, START_TIMER, row.start_by_ms + START_GRACE_MS))


def began(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Set a timer that fails a begun attempt a minute after its timeout, if it has one, by the dispatcher's clock.

    The agent's clock may differ.

    A repeated report gives no more time, unless the attempt was granted again meanwhile. A suspect gets no timer here:
    it first waits for a process of its own, for an unknown time, and its agent kills that process in time.
    """
    call = unit.call(node_key)
    if call is None or call.timeout_ms is None or row.suspect or row.doubted:
        return
    known = timers.read(unit.tr, node_key.workflow, node_key.node, TIMEOUT_TIMER)
    if known is None or known.fence != row.fence:
        due_ms = unit.now_ms + call.timeout_ms + TIMEOUT_GRACE_MS
        unit.set_timer(Timer(node_key.workflow, node_key.node, TIMEOUT_TIMER, due_ms, row.fence))


def clear(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Cancel the timers of a node's time limits, because the node is about to end."""
    if row.start_by_ms is not None:
        timers.cancel(unit.tr, node_key.workflow, node_key.node, START_TIMER)
    if row.deadline_ms is not None:
        timers.cancel(unit.tr, node_key.workflow, node_key.node, DEADLINE_TIMER)
    cancel_timeout(unit, node_key, row)
    row.start_by_ms = row.deadline_ms = None


def cancel_timeout(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Cancel the timeout timer of an attempt that has ended, so that it cannot end the next attempt."""
    if row.state is TaskState.WORKING and row.publication:
        call = unit.call(node_key)
        if call is not None and call.timeout_ms is not None:
            timers.cancel(unit.tr, node_key.workflow, node_key.node, TIMEOUT_TIMER)


def too_late(unit: UnitOfWork, row: NodeRecord) -> bool:
    """Tell whether a published attempt must not start any more, because its latest start has passed."""
    return row.state is TaskState.PUBLISHED and row.start_by_ms is not None and row.start_by_ms <= unit.now_ms


def by_our_clock(unit: UnitOfWork, limit: Failure) -> Failure:
    """Return the failure of a time limit that passed by the dispatcher's clock, with any doubt about that clock."""
    message = f"{limit.message} by its dispatcher's clock"
    return replace(limit, message=f"{message}; {unit.doubt}" if unit.doubt else message)


def _with_message(limit: Failure, failure: Failure) -> Failure:
    """Return the failure of a passed time limit, with the message of the agent or broker appended."""
    return replace(limit, message=f"{limit.message}: {failure.message}")


def judged(unit: UnitOfWork, row: NodeRecord, outcome: Outcome) -> Outcome:
    """Return an attempt's reported outcome; if a time limit ended it, name the passed limit as the failure's reason."""
    if outcome.failure is None or outcome.failure.reason not in _BY_TIME:
        return outcome
    expired = outcome.failure.reason == "expired"
    if row.deadline_ms is not None and row.deadline_ms <= unit.now_ms:
        return _ended_by(by_our_clock(unit, DEADLINE), outcome)
    if expired and row.start_by_ms is not None and row.state is TaskState.PUBLISHED:
        return _ended_by(_with_message(START_TIMEOUT, outcome.failure), replace(outcome, started_at_ms=None))
    if expired and row.deadline_ms is not None:
        return _ended_by(_with_message(DEADLINE, outcome.failure), outcome)
    return outcome


def _ended_by(limit: Failure, outcome: Outcome) -> Outcome:
    return replace(outcome, status=Status.FAILED, body=dumps(limit.as_json()), failure=limit)


def overdue(row: NodeRecord) -> Outcome:
    """Return the failed outcome of an attempt whose end no agent reported within the timeout."""
    body = dumps(ATTEMPT_TIMEOUT.as_json())
    return Outcome(Status.FAILED, body, None, None, attempt=row.attempt, fence=row.fence, failure=ATTEMPT_TIMEOUT)
