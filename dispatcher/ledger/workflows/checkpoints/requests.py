"""The requests about checkpoints: make one, list them, and say what a restore would discard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from coditect.errors import InputError, Retryable
from coditect.workflow import fields
from coditect.workflow.definition import Call, Each, SubWorkflow
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import definitions, versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import CHECKPOINTS, RESTORES, RUNS, STATUSES
from dispatcher.ledger.nodes import children
from dispatcher.ledger.nodes.attempts import RESTORED
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control
from dispatcher.ledger.workflows.checkpoints import positions, spaces
from dispatcher.ledger.workflows.checkpoints.positions import Position
from dispatcher.ledger.workflows.control import MOST_NAME
from dispatcher.ledger.workflows.queries import Body, page_of, rows_of
from dispatcher.ledger.workflows.submit import text
from dispatcher.store.transaction import KeyValue, Reads

MAX_NAMED_CHECKPOINTS = 100
"""The largest number of named checkpoints of one workflow, and of its restores that a list shows."""
_NOT_BEGUN = frozenset({TaskState.BLOCKED, TaskState.READY, TaskState.SKIPPED})
_UNDER_WAY = frozenset({TaskState.PUBLISHED, TaskState.WORKING})


def make(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Make a named checkpoint at the present position in a workflow's history, or move the one of that name there.

    Raises:
        InputError: when the workflow has ended, the name is a node's, or the attempt that asks is not the present one.
        Retryable: while the workflow is being restored.
    """
    workflow, name = text(body, "workflow"), fields.checkpoint(body.get("checkpoint"))
    run = control.run_of(unit, workflow)
    control.check_present(unit, body)
    if run.state.terminal:
        fix = "each completed node is a checkpoint: coditect workflow get RUN --checkpoints"
        raise InputError("The workflow has ended", workflow=workflow, state=run.state.value, fix=fix)
    if run.restoring is not None:
        raise Retryable("The workflow is being restored", workflow=workflow, fix="try again in a moment")
    if unit.node(NodeKey(workflow, name)) is not None:
        fix = "the node is a checkpoint by itself once it has completed; choose another name"
        raise InputError("A node of the workflow has this name", workflow=workflow, checkpoint=name, fix=fix)
    key = CHECKPOINTS.pack((workflow, name))
    if unit.tr.get(key) is None and len(unit.tr.get_range(*CHECKPOINTS.range((workflow,)))) >= MAX_NAMED_CHECKPOINTS:
        raise InputError(
            "The workflow has too many checkpoints with a name", workflow=workflow, most=MAX_NAMED_CHECKPOINTS
        )
    run.checkpoint_ms = max(unit.now_ms, run.checkpoint_ms + 1)
    by = str(body.get("writer") or "")[:MOST_NAME]
    unit.tr.set(key, versions.CHECKPOINT.pack((run.checkpoint_ms, by)))
    unit.effects.say("workflow.checkpoint", workflow, checkpoint=name, by=by)
    return {"workflow": workflow, "checkpoint": name, "at_ms": run.checkpoint_ms}


def listing(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of a workflow's completed nodes as checkpoints; the first page has named ones and restores, too."""
    workflow = text(body, "workflow")
    rows_of(tr, workflow)
    rows, following = _page(tr, workflow, body)
    shown: list[dict[str, Any]] = []
    restored: list[dict[str, Any]] = []
    if not body.get("after"):
        shown = [_named(pair) for pair in tr.get_range(*CHECKPOINTS.range((workflow,)), limit=MAX_NAMED_CHECKPOINTS)]
        latest = tr.get_range(*RESTORES.range((workflow,)), limit=MAX_NAMED_CHECKPOINTS, reverse=True)
        restored = [_restore(pair) for pair in reversed(latest)]
    shown += [
        {
            "checkpoint": node_key.node,
            "node": node_key.node,
            "at_ms": row.finished_ms,
            "by": "",
            "publication": row.publication,
        }
        for node_key, row in rows
        if row.state is TaskState.COMPLETED and not node_key.is_compensation
    ]
    return {"checkpoints": shown, "restores": restored, "next": following}


def plan(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of nodes that a restore would discard though they may have effects, and the token for the restore.

    Of each is told whether it is `compensated`; what is not cannot be undone. The token stands for this position of the
    workflow's history: a restore with it does what was told, or nothing.

    Raises:
        InputError: when the workflow cannot be restored, or (NotFound) has no such checkpoint.
        Retryable: while an earlier restore, redrive or cancel is not done.
    """
    workflow, name = text(body, "workflow"), text(body, "checkpoint")
    _, run = rows_of(tr, workflow)
    position = positions.find(tr, partial(_seen, tr), workflow, name)
    check(workflow, run)
    spaces.check(tr, workflow, position)
    rows, following = _page(tr, workflow, body)
    begun = [(node_key, row) for node_key, row in rows if _has_effects(node_key, row, position)]
    nodes = [
        {
            "node": node_key.node,
            "state": row.state.value,
            "compensated": declares and row.state is TaskState.COMPLETED,
        }
        for (node_key, row), declares in zip(begun, _declared(tr, [node_key for node_key, _ in begun]), strict=True)
    ]
    return {"workflow": workflow, "nodes": nodes, "token": token_of(tr, workflow, run), "next": following}


def check(workflow: str, run: RunRecord) -> None:
    """Refuse to restore a workflow that was canceled or compensated, or while a restore, redrive or cancel goes on.

    Raises:
        InputError: when the workflow cannot be restored.
        Retryable: when it can be in a moment.
    """
    facts = {"workflow": workflow, "state": run.state.value, "fix": "start the workflow again"}
    if run.restoring is not None:
        if run.state.terminal:
            fix = f"coditect workflow resume {workflow}, which goes on with that restore"
            raise InputError("A compensation of an earlier restore has failed", **(facts | {"fix": fix}))
        raise Retryable("An earlier restore is not done yet", workflow=workflow, fix="try again in a moment")
    if run.ended is not None:
        raise InputError("A compensated workflow is not restored: its nodes are undone", **facts)
    if run.state is WorkflowState.CANCELED:
        raise InputError("A canceled workflow is not restored: a cancel is final", **facts)
    if run.redriving or run.canceling:
        fix = "try again in a moment"
        raise Retryable("What was begun before is not done yet", workflow=workflow, fix=fix)


def token_of(tr: Reads, workflow: str, run: RunRecord) -> str:
    """Return a text that stands for a workflow's progress, by which a restore detects that the workflow went on.

    It changes when a further node begins or completes, or the workflow is restored.

    Nodes are only added. One that has begun becomes one that has not only by a retry, a redrive or a restore, which the
    counts of the states tell, unless several nodes have changed places meanwhile.
    """
    begun, expected = Counter[str](), {TaskState(state): count for state, count in run.counts.items()}
    for state, count in expected.items():
        begun["" if state in _NOT_BEGUN else "under_way" if state in _UNDER_WAY else state.value] += count
    counts = ".".join(f"{state}{count}" for state, count in sorted(begun.items()) if count)
    return f"{restores(tr, workflow)}.{counts}.{run.state.value}"


def restores(tr: Reads, workflow: str) -> int:
    """Return how often a workflow was restored."""
    last = tr.get_range(*RESTORES.range((workflow,)), limit=1, reverse=True)
    return int(RESTORES.unpack(last[0][0])[1]) if last else 0


def _seen(tr: Reads, node_keys: Sequence[NodeKey]) -> list[NodeRecord | None]:
    rows = tr.get_many([STATUSES.pack(node_key) for node_key in node_keys])
    return [None if row is None else NodeRecord.unpack(row) for row in rows]


def _page(tr: Reads, workflow: str, body: Body) -> tuple[list[tuple[NodeKey, NodeRecord]], str | None]:
    rows, following = page_of(tr, STATUSES, (workflow,), body)
    return [(NodeKey(workflow, STATUSES.unpack(key)[1]), NodeRecord.unpack(row)) for key, row in rows], following


def _has_effects(node_key: NodeKey, row: NodeRecord, position: Position) -> bool:
    """Tell whether a restore to a checkpoint discards a node whose task or child workflow may have begun."""
    if not row.fence or node_key.is_compensation or row.reason == RESTORED:
        return False
    return not position.keeps(node_key.node, row)


def _declared(tr: Reads, node_keys: Sequence[NodeKey]) -> Iterator[bool]:
    """Yield, for each given node, whether it names a compensation, or its latest child workflow has nodes to undo."""
    defined = tuple(dict.fromkeys(node_key.defined for node_key in node_keys))
    declares: dict[NodeKey, bool] = {}
    runs_child: list[NodeKey] = []
    for node_key, row in zip(defined, definitions.find_all(tr, defined), strict=True):
        work = None if row is None else definitions.known(node_key, row).work
        call = work.call if isinstance(work, Each) else work
        declares[node_key] = isinstance(call, Call | SubWorkflow) and call.compensate is not None
        if isinstance(work, SubWorkflow) and not declares[node_key]:
            runs_child.append(node_key)
    latest = {node_key: found[-1] for node_key, found in children.started(tr, runs_child).items() if found}
    runs = tr.get_many([RUNS.pack((child,)) for child in latest.values()])
    declares.update(
        (node_key, row is not None and RunRecord.unpack(row).to_compensate > 0)
        for node_key, row in zip(latest, runs, strict=True)
    )
    return (declares[node_key.defined] for node_key in node_keys)


def _named(pair: KeyValue) -> dict[str, Any]:
    key, row = pair
    at_ms, by = versions.CHECKPOINT.unpack(row)
    return {"checkpoint": CHECKPOINTS.unpack(key)[1], "node": "", "at_ms": at_ms, "by": by}


def _restore(pair: KeyValue) -> dict[str, Any]:
    at_ms, by, checkpoint = versions.RESTORE.unpack(pair[1])
    return {"at_ms": at_ms, "by": by, "checkpoint": checkpoint}
