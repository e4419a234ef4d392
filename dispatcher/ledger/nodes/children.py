"""The nodes that run another workflow as their child.

A child is a workflow of its own, of the same shard as its parent: one transaction changes both. Its id lies under
"child" with the node's fence, which grows with each child of the node, so the end of an earlier child changes nothing.
What a child needs from whole workflows (its start, its cancel) is left over, and done by `workflows/children`.

=================  =====================================================================================
left over          what is done
=================  =====================================================================================
``child_start``    the child is started, unless the parent is being canceled
``child_cancel``   the child is canceled; the node ends once the child has ended
``child_end``      the child has ended: the node ends, or a new child follows; left by `unit_of_work`
=================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coditect.workflow.definition import SubWorkflow
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import CHILDREN
from dispatcher.ledger.nodes import claim
from dispatcher.ledger.nodes.attempts import forget_restore
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads

START, CANCEL = "child_start", "child_cancel"


def begin(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Begin a node's next child workflow under a new fence; a later transaction starts the child."""
    unit.advance_fence(row)
    forget_restore(row)
    row.ready_ms = row.started_ms = unit.now_ms
    unit.move(node_key, row, TaskState.WORKING)
    unit.leave(node_key, START)


def run_again(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Begin the next attempt of a node from its recorded or defined input: offer its task, or begin its next child."""
    if unit.call(node_key) is not None:
        claim.offer(unit, node_key, row)
    else:
        begin(unit, node_key, row)


def cancel(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> bool:
    """Have a node's child workflow canceled, so that its end ends the node; return False if the node runs no child."""
    if row.state is not TaskState.WORKING or row.publication:
        return False
    if not isinstance(unit.definition(node_key).work, SubWorkflow):
        return False
    child = current(unit, node_key.defined)
    if child is not None:  # otherwise its start finds the cancel
        unit.leave(node_key, CANCEL, child)
    return True


def note(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, child: str) -> None:
    """Record the id of the child that a node runs under its present fence."""
    unit.tr.set(CHILDREN.pack((*node_key, row.fence)), child.encode())


def current(unit: UnitOfWork, node_key: NodeKey) -> str | None:
    """Return the id of a node's latest child workflow; None when it was not started yet, or the node runs none."""
    row = unit.node(node_key)
    child = None if row is None else unit.tr.get(CHILDREN.pack((*node_key, row.fence)))
    return None if child is None else child.decode()


def live(unit: UnitOfWork, workflow: str) -> Iterator[tuple[str, RunRecord]]:
    """Yield the id and the progress record of each unfinished child workflow that the given workflow's nodes run."""
    for _, child in unit.tr.get_range(*CHILDREN.range((workflow,))):
        run = unit.run(child.decode())
        if run is not None and not run.state.terminal:
            yield child.decode(), run


def started(tr: Reads, node_keys: Sequence[NodeKey]) -> dict[NodeKey, list[str]]:
    """Return the ids of all child workflows of each given node, the latest last, by one read for all nodes."""
    found = tr.get_ranges([CHILDREN.range(node_key) for node_key in node_keys]) if node_keys else []
    return {node_key: [child.decode() for _, child in rows] for node_key, rows in zip(node_keys, found, strict=True)}
