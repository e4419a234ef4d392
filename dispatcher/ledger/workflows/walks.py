"""The walks over all nodes of a workflow in pages, to cancel nodes, claim ready nodes, or send nodes to RQ."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import advance, claim
from dispatcher.ledger.unit_of_work import UnitOfWork


def begin_cancel(unit: UnitOfWork, workflow: str) -> None:
    """Begin to cancel all nodes of a workflow that have not ended; a large workflow takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.CANCEL, "", advance.MOST_STEPS)


def begin_resume(unit: UnitOfWork, workflow: str) -> None:
    """Begin to offer all ready nodes of a workflow for claims again; a large one takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.RESUME, "", advance.MOST_STEPS)


def begin_show(unit: UnitOfWork, workflow: str) -> None:
    """Begin to send the states of all nodes of a workflow to RQ, which lost the workflow, in several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.SHOW, "", advance.MOST_SHOWN)


def walk(unit: UnitOfWork, node_key: NodeKey, kind: str, after: str, most: int) -> int:
    """Apply the walk's action to at most `most` of a workflow's nodes after the cursor, and return how many."""
    found = unit.tr.get_range(*STATUSES.behind((node_key.workflow,), (after,)), limit=most + 1)
    met = 0
    for key, stored in found[:most]:
        if not met % advance.AHEAD:
            names = [STATUSES.unpack(one)[1] for one, _ in found[met : met + advance.AHEAD]]
            unit.expect_definitions(NodeKey(node_key.workflow, name) for name in names)
        if met and unit.is_full:
            break
        met += 1
        one = NodeKey(node_key.workflow, STATUSES.unpack(key)[1])
        row = unit.met(one, stored)
        if kind == advance.SHOW:
            unit.show(one)
        if row is None or row.state.terminal or kind == advance.SHOW:
            continue
        if kind == advance.CANCEL:
            advance.cancel_node(unit, one, row)
        elif row.state is TaskState.READY:
            claim.leave_backlog(unit, one, row)
            row.start_by_ms = None
            claim.offer(unit, one, row)
    if len(found) > met:
        unit.leave(node_key, kind, STATUSES.unpack(found[met - 1][0])[1])
    return met
