"""The nodes that wait without a published task: for a person's answer, for an instant, or for a signal.

A signal may come before a node waits for it. It is kept with its workflow, and the next node that awaits its name takes
it; several of one name are taken in the order in which they came. Every signal has an id, which is remembered as long
as the workflow is kept: a signal that is sent twice counts once.

==================  ======================  ==========================================================
timer               the node                when it is due
==================  ======================  ==========================================================
``approval``        awaits an approval      the answer is the node's `on_timeout`
``wait``            waits for an instant    the node is completed; a task with a `delay` is ready
``signal``          awaits a signal         the node has failed, reason `signal_timeout`
==================  ======================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from coditect.errors import InputError
from coditect.model.result import Failure
from coditect.wire.json import dumps, loads
from coditect.workflow import fields
from coditect.workflow.definition import Approval, AwaitSignal, Call, WaitFor, WaitUntil
from coditect.workflow.states import TaskState
from dispatcher.ledger import timers, values
from dispatcher.ledger.effects import EndedWait, NodeKey
from dispatcher.ledger.keyspace import AWAITING, SIGNALS, SIGNALS_KEPT
from dispatcher.ledger.nodes.approvals import gates, judging, questions
from dispatcher.ledger.nodes.approvals.decisions import GRANTED
from dispatcher.ledger.nodes.attempts import RESTORED
from dispatcher.ledger.nodes.inputs import RESULT, write
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import ValueKey

WAIT_TIMER, SIGNAL_TIMER = "wait", "signal"
MOST_KEPT = 100
"""The largest number of signals of one name that a workflow keeps until nodes take them."""
NO_SIGNAL = Failure(
    "signal_timeout", "SignalTimeout", "No signal came in time", fix="send it earlier, or give the node longer"
)


def begin(
    unit: UnitOfWork,
    node_key: NodeKey,
    row: NodeRecord,
    work: Approval | WaitFor | WaitUntil | AwaitSignal,
    bodies: Sequence[bytes] | None,
) -> bool:
    """Begin a node that waits; return True when the node has nothing to wait for and is to be completed now.

    `bodies` has the instant that a node's expression found, or the artifacts of a gate.

    Raises:
        InputError: when the expression found no instant.
    """
    match work:
        case Approval():
            return _approved(unit, node_key, row, work, bodies)
        case AwaitSignal():
            return _await(unit, node_key, row, work)
        case WaitFor(period_ms=period_ms):
            due_ms = unit.now_ms + period_ms
        case WaitUntil(instant=instant):
            due_ms = _instant_ms(loads(bodies[0]) if bodies else instant)
    row.ready_ms = unit.now_ms
    if due_ms <= unit.now_ms:
        return True
    unit.move(node_key, row, TaskState.WAITING)
    _set_timer(unit, node_key, WAIT_TIMER, due_ms)
    return False


def _approved(
    unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, work: Approval, bodies: Sequence[bytes] | None
) -> bool:
    """Begin an approval; return True when the policy grants it, so that the node is to be completed now."""
    found = loads(bodies[0]) if bodies else {}
    decided = gates.check(unit, node_key, work, found) or judging.begin_approval(unit, node_key, row, work)
    if decided is None:
        return False
    row.ready_ms, row.agent = unit.now_ms, decided.by
    granted = decided.decision == GRANTED
    write(unit, node_key, RESULT, dumps({"granted": granted, "by": decided.by, "comment": decided.why}))
    if not granted:
        unit.unfit.append((node_key, gates.refusal(decided)))
    return granted


def delay(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, call: Call) -> bool:
    """Have a task wait for its `delay` before its first publication; return False when there is nothing to wait for.

    Until then the row's `ready_ms` is the instant at which the task will be ready.
    """
    if call.delay is None or row.fence:
        return False
    due_ms = unit.now_ms + call.delay if isinstance(call.delay, int) else fields.instant_ms(call.delay)
    if due_ms <= unit.now_ms:
        return False
    row.ready_ms = due_ms
    unit.move(node_key, row, TaskState.WAITING)
    _set_timer(unit, node_key, WAIT_TIMER, due_ms)
    return True


def close(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """End a node's wait: cancel its timer, and remove its open question or its registration for a signal."""
    if row.state is TaskState.AWAITING_APPROVAL:
        unit.effects.waits.append(EndedWait(node_key, "approval", row.ready_ms or unit.now_ms, {}))
        questions.close(unit, node_key, row)
        return
    note_end(unit, node_key, row)
    work = unit.definition(node_key).work
    if isinstance(work, AwaitSignal):
        unit.tr.clear(AWAITING.pack((node_key.workflow, work.signal, row.ready_ms or 0, node_key.node)))
    timers.cancel(
        unit.tr, node_key.workflow, node_key.node, SIGNAL_TIMER if isinstance(work, AwaitSignal) else WAIT_TIMER
    )


def note_end(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Note for the workflow's trace that a node waits no more for its instant or signal."""
    work, since_ms = unit.definition(node_key).work, row.ready_ms or unit.now_ms
    kind = "signal" if isinstance(work, AwaitSignal) else "time"
    if isinstance(work, Call):  # its `ready_ms` is when its delay is over
        since_ms = since_ms - work.delay if isinstance(work.delay, int) else unit.now_ms
    unit.effects.waits.append(EndedWait(node_key, kind, since_ms, {}))


def receive(unit: UnitOfWork, workflow: str, name: str, identity: str, body: bytes) -> NodeKey | None:
    """Give a new signal to the node that has waited for it longest, and return the node; keep the signal if none waits.

    The caller completes the node.

    Raises:
        InputError: when the workflow keeps too many signals of the name; nothing is changed then.
        ValueBeyondBound: when the signal's value is too large.
    """
    first = unit.tr.get_range(*AWAITING.range((workflow, name)), limit=1)
    if first:
        node_key = NodeKey(workflow, str(AWAITING.unpack(first[0][0])[3]))
        row = unit.node(node_key)
        assert row is not None
        write(unit, node_key, RESULT, body)
        close(unit, node_key, row)
    else:
        node_key = None
        _keep(unit, workflow, name, body)
    unit.tr.set(SIGNALS.pack((workflow, identity)), b"")
    return node_key


def _keep(unit: UnitOfWork, workflow: str, name: str, body: bytes) -> None:
    kept = unit.tr.get_range(*SIGNALS_KEPT.range((workflow, name)), limit=MOST_KEPT)
    if len(kept) == MOST_KEPT:
        raise InputError(
            "Too many signals of this name wait for a node",
            workflow=workflow,
            signal=name,
            most=MOST_KEPT,
            fix="send no more until the workflow's nodes have taken some",
        )
    number = 1 + (int(SIGNALS_KEPT.unpack(kept[-1][0])[2]) if kept else 0)
    values.put(unit.tr, _value_key(workflow, name, number), body)
    unit.tr.set(SIGNALS_KEPT.pack((workflow, name, number)), b"")


def _value_key(workflow: str, name: str, number: int) -> ValueKey:
    return ValueKey(workflow, "", f"signal {name} {number}")


def _await(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, work: AwaitSignal) -> bool:
    row.ready_ms = unit.now_ms
    if row.reason == RESTORED and values.get(unit.tr, ValueKey(*node_key, RESULT)) is not None:
        return True  # the signal that it had taken before a restore is the node's still
    kept = unit.tr.get_range(*SIGNALS_KEPT.range((node_key.workflow, work.signal)), limit=1)
    if kept:
        value_key = _value_key(node_key.workflow, work.signal, int(SIGNALS_KEPT.unpack(kept[0][0])[2]))
        write(unit, node_key, RESULT, values.get(unit.tr, value_key) or b"null")
        values.clear(unit.tr, value_key)
        unit.tr.clear(kept[0][0])
        return True
    unit.move(node_key, row, TaskState.WAITING)
    unit.tr.set(AWAITING.pack((node_key.workflow, work.signal, unit.now_ms, node_key.node)), b"")
    if work.timeout_ms is not None:
        _set_timer(unit, node_key, SIGNAL_TIMER, unit.now_ms + work.timeout_ms)
    return False


def _set_timer(unit: UnitOfWork, node_key: NodeKey, kind: str, due_ms: int) -> None:
    unit.set_timer(Timer(node_key.workflow, node_key.node, kind, due_ms))


def _instant_ms(found: object) -> int:
    if not isinstance(found, str):
        raise InputError("The expression of a wait finds an instant as text", given=type(found).__name__)
    return fields.instant_ms(found)
