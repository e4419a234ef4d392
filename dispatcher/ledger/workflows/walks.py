"""Walks over all nodes of a workflow in pages: to cancel them, to claim ready ones, to show them in RQ."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import advance, claim
from dispatcher.ledger.unit_of_work import UnitOfWork


def begin_cancel(unit: UnitOfWork, workflow: str) -> None:
    """Begin to cancel every node that has not ended; a large workflow takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.CANCEL, "", advance.MOST_STEPS)


def begin_resume(unit: UnitOfWork, workflow: str) -> None:
    """Begin to offer every ready node for a claim again; a large workflow takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.RESUME, "", advance.MOST_STEPS)


def begin_show(unit: UnitOfWork, workflow: str) -> None:
    """Begin to send every node's state to RQ, which lost the workflow; a large one takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.SHOW, "", advance.MOST_SHOWN)


def walk(unit: UnitOfWork, node_key: NodeKey, kind: str, after: str, most: int) -> int:
    """Cancel, offer or show at most `most` of a workflow's nodes after the cursor, by `kind`; return how many."""
    start = STATUSES.pack((node_key.workflow, after)) + b"\0" if after else STATUSES.range((node_key.workflow,))[0]
    found = unit.tr.get_range(start, STATUSES.range((node_key.workflow,))[1], limit=most + 1)
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
        advance.leave(unit, node_key, kind, STATUSES.unpack(found[met - 1][0])[1])
    return met
