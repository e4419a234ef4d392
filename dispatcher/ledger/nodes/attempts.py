"""The history of a node's ended attempts, and the reset of an ended node to its first attempt."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from coditect.model.result import Failure
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.states import TaskState
from dispatcher.ledger import values
from dispatcher.ledger.audit import autonomy
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import ATTEMPTS, DEAD
from dispatcher.ledger.nodes.inputs import FAILURE, ITERATIONS, RESULT, value_of
from dispatcher.ledger.rows import NodeRecord, pack_attempt, unpack_attempt
from dispatcher.ledger.unit_of_work import UnitOfWork

UNDER_WAY = (TaskState.PUBLISHED, TaskState.WORKING)
BY_OTHERS = "predecessor"
"""The reason of a node that ended without running, because a predecessor ended without a result."""
RESTORED = "restored"
"""The reason of a node that a restore of its workflow discarded, until the node begins again, or ends."""
MOST_MESSAGE = 2_000
"""The most characters of an error message in the attempt history; the last attempt's failure is kept whole."""
DIED = Failure("process_died", "AgentLost", "The agent was gone before the attempt ended", retryable=True)
DELIVERY_LOST = Failure(
    "delivery_lost", "DeliveryLost", "The agent lost the delivery before the attempt ended; this is no failed attempt"
)
"""Why an attempt ended that another agent took over, while nothing proves that the first agent died."""
SUSPECT_LOSSES = 2
"""The losses in a row after which a node runs in a process of its own, though its agents live or ended orderly."""
FREE_LOSSES = 20
"""The losses in a row that use up no attempt, because the agents live or ended orderly."""
LOST_TOO_OFTEN = Failure(
    "lost_too_often",
    "LostTooOften",
    f"Agents that did not die lost the task, or were stopped with it, more than {FREE_LOSSES} times in a row",
    fix="see in the history of its attempts why; redrive it when that is mended",
)
HEARTBEAT = Failure("heartbeat", "HeartbeatMissed", "No report of the attempt came for too long", retryable=True)
ATTEMPT_TIMEOUT = Failure(
    "timeout", "TimeoutError", "No report of the attempt's end came within its timeout", retryable=True
)
_LOOK = "look at the message in the queue `unrouted`"
UNREADABLE = Failure("unreadable_result", "UnreadableResult", "", retryable=True, fix=_LOOK)
UNRECORDABLE = Failure(
    "unrecordable_result", "UnrecordableResult", "", retryable=True, fix=f"{_LOOK}, and at the dispatcher's log"
)
"""Why an attempt failed whose end the ledger could not record."""
UNREPORTED = MappingProxyType({failure.reason: failure for failure in (ATTEMPT_TIMEOUT, UNREADABLE, UNRECORDABLE)})
"""Why an attempt failed of which no agent reported, or could report, whether another one follows; by the reason."""
DEADLY = frozenset(failure.reason for failure in (DIED, HEARTBEAT, LOST_TOO_OFTEN, UNRECORDABLE))
"""The reasons with which a node without an attempt left is dead, and not failed."""
BROKER_LOST = Failure("broker_lost", "BrokerLost", "The broker lost its data while the attempt was under way")


def write_attempt(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, status: str, failure: Failure | None) -> None:
    """Add a node's present attempt, which ended or lost its agent, to the history of the node's attempts."""
    attempt = AttemptRow(
        node_key.node,
        row.attempt,
        row.fence,
        row.publication,
        row.agent,
        row.published_ms,
        row.started_ms,
        row.finished_ms or unit.now_ms,
        status,
        failure.reason if failure else "",
        failure.message[:MOST_MESSAGE] if failure else "",
    )
    unit.tr.set(ATTEMPTS.pack((node_key.workflow, node_key.node, attempt.fence)), pack_attempt(attempt))


def say_failed(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, failure: Failure, *, agent: str = "") -> None:
    """Have an event published about a node's failed attempt, by default at the row's agent."""
    if (call := unit.call(node_key)) is not None:
        known = {"capability": call.capability, "agent": agent or row.agent, "attempt": row.attempt}
        unit.effects.say("attempt.failed", node_key.task_id, **known, **failure.as_event())


def doubt(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Close a node's present attempt, uncounted, until it is known whether its agent died or only lost the delivery."""
    write_attempt(unit, node_key, row, "lost", DELIVERY_LOST)
    row.doubted = [*(entry for entry in row.doubted if entry[1] != row.fence), [row.agent, row.fence]]


def mark_died(unit: UnitOfWork, node_key: NodeKey, fence: int) -> None:
    """Record of an attempt in a node's history that its agent died."""
    key = ATTEMPTS.pack((node_key.workflow, node_key.node, fence))
    if (stored := unit.tr.get(key)) is not None:
        attempt = unpack_attempt(node_key.node, stored)
        unit.tr.set(key, pack_attempt(replace(attempt, reason=DIED.reason, message=DIED.message)))


def is_free(row: NodeRecord) -> bool:
    """Count a loss by an agent that did not die of it, and tell whether the loss uses up no attempt.

    The task may be the cause all the same: it cuts its agent's connection, or stops its agent in an orderly way.
    """
    row.losses += 1
    row.suspect = row.suspect or row.losses >= SUSPECT_LOSSES
    return row.losses <= FREE_LOSSES


def why_lost(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> Failure:
    """Return why a node without an attempt left has ended, by its last attempt.

    The agents lost it too often, no agent reported its end, or its agent missed a heartbeat, or died.
    """
    if row.losses > FREE_LOSSES:
        return LOST_TOO_OFTEN
    last = _last_attempt(unit, node_key)
    if (failure := _unreported(last)) is not None:
        return failure
    return HEARTBEAT if last is not None and last.reason == HEARTBEAT.reason else DIED


def is_unreported(unit: UnitOfWork, node_key: NodeKey) -> bool:
    """Tell whether the last attempt in a node's history ended without an agent's word on another one."""
    return _unreported(_last_attempt(unit, node_key)) is not None


def _last_attempt(unit: UnitOfWork, node_key: NodeKey) -> AttemptRow | None:
    found = unit.tr.get_range(*ATTEMPTS.range((node_key.workflow, node_key.node)), limit=1, reverse=True)
    return next((unpack_attempt(node_key.node, value) for _, value in found), None)


def _unreported(attempt: AttemptRow | None) -> Failure | None:
    """Return why an attempt ended without an agent's word on another one; None for any other attempt."""
    if attempt is None or (failure := UNREPORTED.get(attempt.reason)) is None:
        return None
    if attempt.reason == ATTEMPT_TIMEOUT.reason and attempt.message != ATTEMPT_TIMEOUT.message:
        return None  # the agent itself reported the timeout
    return replace(failure, message=attempt.message)


def forget_restore(row: NodeRecord) -> None:
    """Clear the reason `restored` of a node that begins again, because the node may have effects from now on."""
    if row.reason == RESTORED:
        row.reason = ""


def begin_anew(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Reset an ended node to attempt 1, uncount its end, and, if it ran, keep its last attempt in the node's history.

    Its result, failure and loop count are removed, unless it was canceled, restored, or ended by a predecessor. State
    and fence stay.
    """
    if (call := unit.call(node_key)) is not None:
        autonomy.take_back_task(unit, call.capability, row)
    if row.state is TaskState.DEAD:
        unit.tr.clear(DEAD.pack(node_key))
    if row.reason not in (BY_OTHERS, RESTORED):
        failure = _forget_values(unit, node_key) if row.state is not TaskState.CANCELED else None
        if row.fence:
            write_attempt(unit, node_key, row, row.state.value, failure)
    row.attempt, row.agent, row.reason, row.finished_ms, row.suspect = 1, "", "", None, False
    row.capability, row.handoffs, row.doubted, row.losses = "", 0, (), 0


def _forget_values(unit: UnitOfWork, node_key: NodeKey) -> Failure | None:
    """Remove a reset node's stored failure, result and loop count; return the failure, None when there was none."""
    known = value_of(unit.tr, node_key, FAILURE)
    for kind in (FAILURE, RESULT, ITERATIONS):
        values.clear(unit.tr, values.ValueKey(node_key.workflow, node_key.node, kind))
    return None if known is None else Failure(**known)
