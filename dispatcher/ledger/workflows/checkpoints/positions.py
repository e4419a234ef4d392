"""The positions in a workflow's history that a restore goes back to: nodes that had ended stay, others are discarded.

A checkpoint costs nothing while a workflow runs. The rows of the nodes say when each of them ended, which is a log
already, so the checkpoint after a node is the instant of the node's end. A checkpoint on request has a row of its own
with a name, and every later end in the workflow gets a later instant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from coditect.errors import InputError, NotFound
from coditect.model.message import value
from coditect.workflow.definition import defined_name
from coditect.workflow.states import TaskState
from dispatcher.ledger import versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import CHECKPOINTS, EDGES
from dispatcher.ledger.nodes.attempts import RESTORED
from dispatcher.ledger.rows import NodeRecord
from dispatcher.store.transaction import Reads

Seen: TypeAlias = Callable[[Sequence[NodeKey]], Sequence[NodeRecord | None]]
"""The function that reads the progress of several nodes at once."""
MOST_LATER = 500
"""The largest number of dependents that are looked at for ends in the very millisecond of a checkpoint."""


@value
class Position:
    """A point in a workflow's history that a restore goes back to; each end of a node lies before or after it."""

    at_ms: int
    """The instant of the position: when a node ended, or when a named checkpoint was made."""
    later: tuple[str, ...] = ()
    """The nodes that ended in the same millisecond, but after the node of the checkpoint."""

    def keeps(self, name: str, row: NodeRecord) -> bool:
        """Tell whether a node had ended by this point in a workflow's history; a restore leaves such a node as is."""
        if row.finished_ms is None or not row.state.terminal or row.reason == RESTORED:
            return False
        return row.finished_ms <= self.at_ms and defined_name(name) not in self.later

    def had_written(self, at_ms: int, node: str) -> bool:
        """Tell whether a write to shared state came before this point in the workflow's history.

        `at_ms` is the time of the write, and `node` the node whose task wrote, or "" for another writer.
        """
        return at_ms < self.at_ms or (at_ms == self.at_ms and node not in self.later)


def find(tr: Reads, seen: Seen, workflow: str, name: str) -> Position:
    """Return the point in a workflow's history that `name` stands for: a named checkpoint, or a completed node's end.

    Raises:
        NotFound: when the workflow has no such checkpoint.
        InputError: when too many nodes were executed in its very millisecond to tell which of them came later.
    """
    stored = tr.get(CHECKPOINTS.pack((workflow, name)))
    if stored is not None:
        return Position(int(versions.CHECKPOINT.unpack(stored)[0]))
    node_key = NodeKey(workflow, name)
    (row,) = seen([node_key])
    if row is None or node_key.is_compensation or row.state is not TaskState.COMPLETED or row.finished_ms is None:
        fix = f"coditect workflow get {workflow} --checkpoints"
        raise NotFound("The workflow has no such checkpoint", workflow=workflow, checkpoint=name, fix=fix)
    return Position(row.finished_ms, _later(tr, seen, node_key, row.finished_ms))


def read(stored: list[Any]) -> Position:
    """Decode the point in its history to which a workflow is being restored, as its progress record keeps the point."""
    return Position(stored[0], tuple(stored[1]))


def _later(tr: Reads, seen: Seen, node_key: NodeKey, at_ms: int) -> tuple[str, ...]:
    """Return the nodes that depend on a node, directly or not, and ended in the same millisecond as the node."""
    found: dict[str, None] = {}
    waiting, left, was_executed = deque([node_key.node]), MOST_LATER, False
    while waiting and left > 0:
        edges = tr.get_range(*EDGES.range((node_key.workflow, waiting.popleft())), limit=left)
        left -= 1 + len(edges)
        dependents = [NodeKey(node_key.workflow, EDGES.unpack(key)[2]) for key, _ in edges]
        for dependent, row in zip(dependents, seen(dependents), strict=True):
            if row is not None and row.finished_ms == at_ms and dependent.node not in found:
                found[dependent.node] = None
                was_executed |= row.published_ms == at_ms
                waiting.append(dependent.node)
    if was_executed and left <= 0:  # only a clock that stands still has so many; what was skipped may also stay
        fix = "restore to a checkpoint of another time"
        raise InputError("Too many nodes ended in the millisecond of this checkpoint", node=node_key.node, fix=fix)
    return tuple(found)
