"""The walks over nodes in pages: to cancel those of a workflow or map, offer ready ones again, or send them to RQ."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import advance, claim
from dispatcher.ledger.unit_of_work import UnitOfWork


def begin_cancel(unit: UnitOfWork, workflow: str) -> None:
    """Begin to cancel all nodes of a workflow that have not ended; a large workflow takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.CANCEL, "", advance.MAX_DEPENDENTS)


def begin_resume(unit: UnitOfWork, workflow: str) -> None:
    """Begin to offer all ready nodes of a workflow for claims again; a large one takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.RESUME, "", advance.MAX_DEPENDENTS)


def begin_show(unit: UnitOfWork, workflow: str) -> None:
    """Begin to send the states of all nodes of a workflow to RQ; a large workflow takes several transactions."""
    walk(unit, NodeKey(workflow, advance.ROOT), advance.SHOW, "", advance.MAX_SHOWN_NODES)


def cancel_elements(unit: UnitOfWork, node_key: NodeKey, cursor: str, limit: int) -> int:
    """Cancel at most `most` elements of a canceled map from number `cursor` on; return their number, at least 1."""
    first = number = int(cursor)
    row = unit.node(node_key)
    if row is None or row.state is not TaskState.CANCELED:  # it was begun again meanwhile
        return 1
    while number < first + limit and (number == first or not unit.is_full):
        if not (number - first) % advance.AHEAD:
            unit.expect_all([node_key.element(index) for index in range(number, number + advance.AHEAD)])
        element = node_key.element(number)
        child = unit.node(element)
        if child is None:
            return max(1, number - first)
        if not child.state.terminal:
            advance.cancel_node(unit, element, child)
        number += 1
    unit.leave(node_key, advance.ELEMENTS, str(number))
    return number - first


def walk(unit: UnitOfWork, node_key: NodeKey, kind: str, after: str, limit: int) -> int:
    """Cancel, offer for claims again or send to RQ, by `kind`, a page of a workflow's nodes; return how many it had.

    The page holds at most `most` nodes whose names follow `after`; the rest is left to a later transaction.
    """
    found = unit.tr.get_range(*STATUSES.behind((node_key.workflow,), (after,)), limit=limit + 1)
    met = 0
    for key, stored in found[:limit]:
        if not met % advance.AHEAD:
            names = [STATUSES.unpack(key)[1] for key, _ in found[met : met + advance.AHEAD]]
            unit.expect_definitions(NodeKey(node_key.workflow, name) for name in names)
        if met and unit.is_full:
            break
        met += 1
        met_key = NodeKey(node_key.workflow, STATUSES.unpack(key)[1])
        row = unit.met(met_key, stored)
        if kind == advance.SHOW:
            unit.show(met_key)
        if row is None or row.state.terminal or kind == advance.SHOW:
            continue
        if kind == advance.CANCEL:
            advance.cancel_node(unit, met_key, row)
        elif row.state is TaskState.READY:
            claim.leave_backlog(unit, met_key, row)
            row.start_by_ms = None
            claim.offer(unit, met_key, row)
    if len(found) > met:
        unit.leave(node_key, kind, STATUSES.unpack(found[met - 1][0])[1])
    return met
