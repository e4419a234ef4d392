"""The walks over nodes in pages: to cancel those of a workflow or map, offer ready ones again, or send them to RQ."""

from __future__ import annotations

from collections.abc import Callable

from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import advance, claim
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork


def each(
    unit: UnitOfWork, root: NodeKey, kind: str, act: Callable[[NodeKey, NodeRecord], None], *, after: str, limit: int
) -> tuple[int, bool]:
    """Call `act` with each node of a page of a workflow's nodes; return how many it had, and if it was the last page.

    The page holds at most `limit` nodes whose names follow `after`; the rest is left to a later transaction as `kind`.
    """
    found = unit.tr.get_range(*STATUSES.behind((root.workflow,), (after,)), limit=limit + 1)
    node_keys = [NodeKey(root.workflow, str(STATUSES.unpack(key)[1])) for key, _ in found]
    seen = 0
    for node_key, (_, stored) in zip(node_keys[:limit], found, strict=False):
        if not seen % advance.AHEAD:
            unit.expect_definitions(node_keys[seen : seen + advance.AHEAD])
        if seen and unit.is_full:
            break
        seen += 1
        act(node_key, unit.met(node_key, stored))
    if len(found) > seen:
        unit.leave(root, kind, node_keys[seen - 1].node)
    return seen, len(found) == seen


def cancel(unit: UnitOfWork, root: NodeKey, after: str, limit: int) -> int:
    """Cancel the nodes of a page that have not ended; return how many nodes it had."""

    def end(node_key: NodeKey, row: NodeRecord) -> None:
        if not row.state.terminal:
            advance.cancel_node(unit, node_key, row)

    return each(unit, root, advance.CANCEL, end, after=after, limit=limit)[0]


def resume(unit: UnitOfWork, root: NodeKey, after: str, limit: int) -> int:
    """Offer the ready nodes of a page for claims again; return how many nodes it had."""

    def offer(node_key: NodeKey, row: NodeRecord) -> None:
        if row.state is TaskState.READY:
            row.start_by_ms = None
            claim.offer(unit, node_key, row)

    return each(unit, root, advance.RESUME, offer, after=after, limit=limit)[0]


def show(unit: UnitOfWork, root: NodeKey, after: str, limit: int) -> int:
    """Send the states of a page's nodes to RQ; return how many nodes it had."""
    limit = min(limit, advance.MAX_SHOWN_NODES)
    return each(unit, root, advance.SHOW, lambda node_key, _: unit.show(node_key), after=after, limit=limit)[0]


def cancel_elements(unit: UnitOfWork, node_key: NodeKey, cursor: str, limit: int) -> int:
    """Cancel at most `limit` elements of a canceled map from number `cursor` on; return their number, at least 1."""
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
