"""The requests that run nodes again: redrive of one ended node, and resume of a failed workflow.

The node gets its recorded input, or another one, and a new fence; attempts are counted from 1 again. Dependents that
ended only because of the node, without having run, wait again. Completed nodes stay completed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from coditect.errors import InputError, Retryable
from coditect.wire.json import dumps
from coditect.workflow.definition import Each
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.audit import autonomy, trail
from dispatcher.ledger.audit.trail import AuditEntry
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.keyspace import EDGES, LIVE
from dispatcher.ledger.nodes import advance, joins
from dispatcher.ledger.nodes.attempts import BY_OTHERS
from dispatcher.ledger.nodes.inputs import INPUT, has_expressions, write
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.unit_of_work import COMPENSATE, UnitOfWork
from dispatcher.ledger.workflows import control, redrive_steps
from dispatcher.ledger.workflows.submit import text

MAX_REDRIVEN_NAMED = 500
"""The largest number of nodes that the answer to a redrive names."""


def redrive(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Run a failed, dead, rejected or canceled node again; with `dry_run` only return which nodes would run again.

    The answer names at most `MAX_REDRIVEN_NAMED` nodes, and says whether there are `more`.

    Raises:
        InputError: when the node cannot run again.
        Retryable: while an earlier redrive, or a cancel, is not done.
    """
    node_key = NodeKey(text(body, "workflow"), text(body, "node"))
    run = control.run_of(unit, node_key.workflow)
    row = control.node_of(unit, node_key)
    _check_ended_by_itself(node_key, row)
    if run.ended is not None and not node_key.is_compensation:
        fix = "redrive a compensation that failed, or start the workflow again"
        raise InputError("The workflow is compensated", workflow=node_key.workflow, node=node_key.node, fix=fix)
    if "input" in body:
        _check_input(unit, node_key, body["input"])
    _check_done_with(node_key, run)
    check_parent(unit, node_key.workflow, run)
    _check_predecessors(unit, node_key, has_input="input" in body)
    document = {"workflow": node_key.workflow, "node": node_key.node}
    if body.get("dry_run"):
        return document | _planned(unit, node_key) | {"dry_run": True}
    if "input" in body:
        write(unit, node_key, INPUT, dumps(body["input"]))
        row.own_input = True
    known = len(unit.effects.transitions)
    call = unit.call(node_key)
    trail.append(unit, node_key, _ordered("redriven", body, row.reason, "" if call is None else call.capability))
    reopen(unit, node_key.workflow, run)
    redrive_steps.begin(unit, node_key, row)
    return document | _begun(unit.effects.transitions[known:], run) | {"dry_run": False}


def _check_ended_by_itself(node_key: NodeKey, row: NodeRecord) -> None:
    if node_key.is_element:
        raise InputError("An element runs again with its map", node=node_key.node, fix="redrive the map itself")
    if row.state not in redrive_steps.REDRIVABLE:
        raise InputError("Only what ended without a value runs again", node=node_key.node, state=row.state.value)
    if row.reason == BY_OTHERS:
        fix = "redrive the node that failed first: coditect workflow get"
        raise InputError("The node ended because of another", node=node_key.node, fix=fix)


def _check_predecessors(unit: UnitOfWork, node_key: NodeKey, *, has_input: bool) -> None:
    """Refuse to redrive a node whose predecessors failed, or with a new input that its expressions would replace."""
    node = unit.definition(node_key)
    decision = joins.decision(unit, node_key, redrive_steps.tally_of(unit, node_key, node))
    if decision not in (None, TaskState.READY):
        fix = "redrive those first, or resume the workflow"
        raise InputError("What the node comes after ended without a value", node=node_key.node, fix=fix)
    if has_input and decision is None and has_expressions(node):
        fix = "redrive it without an input, or try again when they have ended"
        raise InputError("The node's input is evaluated when its predecessors have ended", node=node_key.node, fix=fix)


def _check_input(unit: UnitOfWork, node_key: NodeKey, new_input: object) -> None:
    """Refuse a new input for a map if nodes of its elements exist already, or if the input is no list or too long."""
    work = unit.definition(node_key).work
    if not isinstance(work, Each):
        return
    if advance.has_elements(unit, node_key):
        fix = "redrive it without an input, or start the workflow again"
        raise InputError("A map that has elements keeps their inputs", node=node_key.node, fix=fix)
    if not isinstance(new_input, list):
        fix = "give a list: the input of each element"
        raise InputError("The input of a map is a list", node=node_key.node, given=type(new_input).__name__, fix=fix)
    if len(new_input) > work.limit:
        raise InputError(
            "The list is longer than the map's limit", node=node_key.node, count=len(new_input), most=work.limit
        )


def _check_done_with(node_key: NodeKey, run: RunRecord) -> None:
    """Refuse a redrive while a cancel or another redrive of the workflow is under way."""
    if run.redriving or (run.canceling and not run.state.terminal):
        fix = "try again in a moment"
        raise Retryable(
            "What was begun before is not done yet", workflow=node_key.workflow, node=node_key.node, fix=fix
        )


def resume(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Resume a paused workflow, or run a failed one again from its failed nodes, or from its failed compensation.

    Raises:
        InputError: when the workflow has completed, was canceled, or has no failed node, or (NotFound) there is none.
    """
    workflow = text(body, "workflow")
    run = control.run_of(unit, workflow)
    if not run.state.terminal:
        return control.resume(unit, body)
    if run.state is WorkflowState.COMPLETED:
        raise InputError("The workflow has completed", workflow=workflow)
    if run.state is WorkflowState.CANCELED:
        fix = "start it again, or redrive the nodes that are to run: coditect dead redrive --node WORKFLOW:NODE"
        raise InputError("The workflow was canceled", workflow=workflow, fix=fix)
    if run.state is WorkflowState.COMPENSATED:
        raise InputError("The workflow is compensated", workflow=workflow, fix="start it again")
    if not any(run.counts.get(state.value) for state in redrive_steps.REDRIVABLE):
        raise InputError("The workflow has no node to begin with", workflow=workflow, state=run.state.value)
    check_parent(unit, workflow, run)
    known = len(unit.effects.transitions)
    trail.append(unit, NodeKey(workflow, ""), _ordered("resumed", body, run.state.value))
    reopen(unit, workflow, run)
    if run.ended is not None:
        unit.leave(NodeKey(workflow, ""), COMPENSATE)
    else:
        redrive_steps.begin_all(unit, workflow)
    return {"workflow": workflow, "state": run.state.value, **_begun(unit.effects.transitions[known:], run)}


def _ordered(order: str, body: Mapping[str, Any], before: str, capability: str = "") -> AuditEntry:
    """Return the audit trail's entry of a person's redrive or resume, which says how the node or workflow had ended."""
    by = str(body.get("by") or "")[: control.MOST_NAME]
    return AuditEntry(order, by, automatic=False, why=f"it had ended: {before}", capability=capability)


def check_parent(unit: UnitOfWork, workflow: str, run: RunRecord) -> None:
    """Refuse to run an ended child workflow again, because the node that started it has already acted on its end."""
    head = unit.workflow(workflow)
    if not run.state.terminal or run.ended is not None or head is None or (parent := head.parent) is None:
        return
    fix = f"run the parent's node again: coditect dead redrive --node {parent.workflow}:{parent.node}"
    raise InputError("This sub-workflow has ended, and its parent went on", workflow=workflow, fix=fix)


def reopen(unit: UnitOfWork, workflow: str, run: RunRecord) -> None:
    """Have an ended workflow run again, or go on with its compensation; reports of autonomy count a manual step."""
    autonomy.take_back_workflow(unit, workflow, run)
    autonomy.note_hand(unit, workflow)
    if run.finished_ms is not None:
        head = unit.workflow(workflow)
        assert head is not None
        head.forget_end(unit.tr, workflow, run.finished_ms)
        unit.tr.set(LIVE.pack((unit.shard, workflow)), b"")
        unit.effects.unshown.append(workflow)  # RQ may have forgotten it
    run.finished_ms, run.reason, run.canceling, run.keeps = None, "", False, False
    if run.state is not WorkflowState.PAUSED:  # what got ready meanwhile waits for the resume
        run.state = WorkflowState.RUNNING if run.ended is None else WorkflowState.COMPENSATING
        unit.effects.say("workflow.resumed", workflow)


def _begun(moved: list[Transition], run: RunRecord) -> dict[str, Any]:
    """Return, to answer a redrive, which nodes this transaction has reset, and whether later ones may reset more."""
    return _named({change.node_key.node for change in moved if change.state is TaskState.BLOCKED}, more=run.redriving)


def _planned(unit: UnitOfWork, node_key: NodeKey) -> dict[str, Any]:
    """Return the nodes that a redrive would reset: the given node, and those that ended only because of it."""
    found, waiting, looked = {node_key.node}, deque([node_key.node]), 0
    while waiting and looked < advance.MAX_DEPENDENTS:
        key = (node_key.workflow, waiting.popleft())
        edges = unit.tr.get_range(*EDGES.range(key), limit=advance.MAX_DEPENDENTS)
        dependents = [EDGES.unpack(edge)[2] for edge, _ in edges]
        unit.expect(NodeKey(node_key.workflow, dependent) for dependent in dependents)
        for dependent in dependents:
            looked += 1
            row = unit.node(NodeKey(node_key.workflow, dependent))
            if dependent not in found and row is not None and row.state.terminal and row.reason == BY_OTHERS:
                found.add(dependent)
                waiting.append(dependent)
    return _named(found, more=looked >= advance.MAX_DEPENDENTS)


def _named(nodes: Collection[str], *, more: bool) -> dict[str, Any]:
    return {"again": sorted(nodes)[:MAX_REDRIVEN_NAMED], "more": more or len(nodes) > MAX_REDRIVEN_NAMED}
