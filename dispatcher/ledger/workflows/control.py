"""The requests that control a workflow: cancel, pause, resume, and the answer to an approval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coditect.errors import InputError, InvalidTask, NotFound
from coditect.wire.json import dumps
from coditect.workflow.approvals.signing import is_signed
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.audit import autonomy
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes import advance, children, claim
from dispatcher.ledger.nodes.approvals import decisions, questions
from dispatcher.ledger.nodes.approvals.decisions import AUTOMATIC, DENIED, GRANTED, TIMEOUT, DecisionRecord
from dispatcher.ledger.nodes.inputs import RESULT, write
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import walks
from dispatcher.ledger.workflows.submit import number, text

MOST_NAME = 255
MOST_COMMENT = 2_000
"""The most characters of the comment to an approval's answer, and of the reason of a cancel."""


def run_of(unit: UnitOfWork, workflow: str) -> RunRecord:
    """Return the record of the progress of the workflow that a request names.

    Raises:
        NotFound: when there is no such workflow.
    """
    run = unit.run(workflow)
    if run is None:
        raise NotFound("There is no such workflow", workflow=workflow, fix="coditect workflow list")
    return run


def node_of(unit: UnitOfWork, node_key: NodeKey) -> NodeRecord:
    """Return the record of the progress of the node that a request names.

    Raises:
        NotFound: when the workflow has no such node.
    """
    row = unit.node(node_key)
    if row is None:
        raise NotFound("The workflow has no such node", workflow=node_key.workflow, node=node_key.node)
    return row


def check_present(unit: UnitOfWork, body: Mapping[str, Any]) -> None:
    """Refuse a request that an attempt of a node makes after the node has ended or another attempt has followed.

    Raises:
        InputError: when the attempt that the field `by` names is not the present one of its node.
    """
    by = body.get("by")
    if by is None:
        return
    if not isinstance(by, Mapping):
        raise InvalidTask("A field of the request is no object", field="by")
    node_key = NodeKey(text(by, "workflow"), text(by, "node"))
    row = unit.node(node_key)
    if row is None or row.state.terminal or row.fence > number(by, "fence", 1):
        raise InputError(
            "This attempt is not the present one of its node, so it cannot write",
            workflow=node_key.workflow,
            node=node_key.node,
            fix="end the handler: its result would be refused, too",
        )


def cancel(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Cancel a workflow's unfinished nodes; completed ones are then compensated where declared, unless told otherwise.

    Completed nodes are compensated where they declare it, unless `compensate` is false. A compensation under way is
    ended only by such a cancel; one that a restore has begun goes on with all other completed nodes. While a cancel
    is under way, another one changes nothing.

    Raises:
        NotFound: when there is no such workflow.
    """
    workflow = text(body, "workflow")
    run = run_of(unit, workflow)
    keeps, reason = body.get("compensate") is False, str(body.get("reason") or "")[:MOST_COMMENT]
    if not run.state.terminal and not run.canceling and (run.ended is None or keeps):
        run.canceling, run.keeps = True, keeps
        run.reason = reason
        walks.cancel(unit, NodeKey(workflow, advance.ROOT), "", advance.MAX_DEPENDENTS)
    elif run.restoring is not None and not run.state.terminal and not run.canceling:
        run.ended, run.reason = WorkflowState.CANCELED, reason  # once undone for the restore, it undoes the rest
    is_canceled = run.canceling or (run.restoring is not None and run.ended is WorkflowState.CANCELED)
    return {"workflow": workflow, "state": run.state.value, "canceling": is_canceled}


def pause(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Stop publishing tasks of the workflow and of its children; running tasks go on.

    Raises:
        InputError: when the workflow does not run, or (NotFound) there is none.
    """
    workflow = text(body, "workflow")
    run = run_of(unit, workflow)
    if run.state is WorkflowState.RUNNING and not run.canceling:
        run.state = WorkflowState.PAUSED
        unit.effects.say("workflow.paused", workflow)
        for child, its_run in children.live(unit, workflow):
            if its_run.state is WorkflowState.RUNNING and not its_run.canceling:
                pause(unit, {"workflow": child})
    elif run.state is not WorkflowState.PAUSED:
        raise InputError("Only a running workflow can be paused", workflow=workflow, state=run.state.value)
    return {"workflow": workflow, "state": run.state.value}


def resume(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Resume a paused workflow and its children, and offer their ready nodes again; any other workflow stays as it is.

    Raises:
        NotFound: when there is no such workflow.
    """
    workflow = text(body, "workflow")
    run = run_of(unit, workflow)
    if run.state is WorkflowState.PAUSED:
        run.state = WorkflowState.RUNNING
        walks.resume(unit, NodeKey(workflow, advance.ROOT), "", advance.MAX_DEPENDENTS)
        unit.effects.say("workflow.resumed", workflow)
        for child, _ in children.live(unit, workflow):
            resume(unit, {"workflow": child})
    return {"workflow": workflow, "state": run.state.value}


def answer(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Grant or deny an open approval; the first answer counts, and is kept with the name of its author.

    Raises:
        InputError: when the node waits for no answer, or (NotFound) there is none, or (InvalidTask) a field is wrong.
    """
    node_key = NodeKey(text(body, "workflow"), text(body, "node"))
    granted = body.get("granted")
    if not isinstance(granted, bool):
        raise InvalidTask("An answer says granted: true or false", field="granted")
    by = text(body, "by")[:MOST_NAME]
    run_of(unit, node_key.workflow)
    row = node_of(unit, node_key)
    if row.state is not TaskState.AWAITING_APPROVAL:
        raise InputError(
            "This node asks for no approval", workflow=node_key.workflow, node=node_key.node, state=row.state.value
        )
    if by in AUTOMATIC:
        raise InputError("A person answers under a name of their own", by=by, reserved=sorted(AUTOMATIC))
    _check_signature(unit, node_key, body)
    comment = str(body.get("comment") or "")[:MOST_COMMENT]
    settle(unit, node_key, row, GRANTED if granted else DENIED, by=by, comment=comment)
    return {"workflow": node_key.workflow, "node": node_key.node, "state": row.state.value}


def _check_signature(unit: UnitOfWork, node_key: NodeKey, body: Mapping[str, Any]) -> None:
    key = None if unit.policy.approvals is None else unit.policy.approvals.answer_key
    if key is None:
        return
    asked = decisions.read(unit.tr, node_key)
    if not is_signed(key, body, asked_ms=0 if asked is None else asked.at_ms):
        fix = "answer by the API, or where CODITECT_APPROVAL_KEY is the dispatchers'; agents do not have it"
        raise InputError("The answer is not signed by the key of approvals", node=node_key.node, fix=fix)


def settle(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, decision: str, *, by: str, comment: str = "") -> None:
    """Carry out the answer to a node's question by a person or a timeout: run or complete the node, or reject it."""
    granted = decision == GRANTED
    asked = decisions.read(unit.tr, node_key) or DecisionRecord(decision, unit.now_ms)
    questions.close(unit, node_key, row)
    why = "no answer in time" if by == TIMEOUT else comment
    answered = replace(asked, decision=decision, at_ms=unit.now_ms, by=by, why=why)
    decisions.record(unit, node_key, answered, asked_ms=asked.at_ms)
    if by != TIMEOUT:
        row.by_hand = True
        autonomy.note_hand(unit, node_key.workflow)
    if unit.call(node_key) is None:
        row.agent = by
        write(unit, node_key, RESULT, dumps({"granted": granted, "by": by, "comment": comment}))
    reason = "" if granted else "approval_timeout" if by == TIMEOUT else "denied"
    if not granted:
        advance.end(unit, node_key, row, TaskState.REJECTED, reason=reason)
    elif unit.call(node_key) is None:
        advance.end(unit, node_key, row, TaskState.COMPLETED)
    elif advance.is_over(unit.run(node_key.workflow)):
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
    else:
        claim.offer(unit, node_key, row)
