"""The backlog of one shard: its ready nodes that wait until their capability has room for another publication."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence

from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey, Transition

Place = tuple[str, NodeKey]
"""A waiting node with its priority."""


class Backlog:
    """The ready nodes of one shard by capability, in the order in which they are claimed: urgent ones, then the oldest.

    It follows the committed transitions. A node in it may not be ready any more, or its workflow may be paused: the
    claim looks at the node's row.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, OrderedDict[NodeKey, None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __contains__(self, capability: str) -> bool:
        return capability in self._waiting

    def follow(self, transitions: Iterable[Transition], waiting: Container[NodeKey]) -> None:
        """Add the nodes that became ready and are `waiting`, and remove those that are not ready any more."""
        for moved in transitions:
            if moved.state is TaskState.READY:
                if moved.node_key in waiting:
                    levels = self._waiting.setdefault(moved.capability, {})
                    levels.setdefault(moved.level, OrderedDict())[moved.node_key] = None
            elif (levels := self._waiting.get(moved.capability, {})) and moved.node_key in levels.get(moved.level, ()):
                self._remove(moved.capability, moved.level, moved.node_key)

    def take(self, capability: str, limit: int) -> list[Place]:
        """Remove and return at most `limit` of a capability's nodes, the first to be claimed."""
        taken = list[Place]()
        while len(taken) < limit and (levels := self._waiting.get(capability)):
            level = min(levels)
            node_key = next(iter(levels[level]))
            self._remove(capability, level, node_key)
            taken.append((level, node_key))
        return taken

    def put_back(self, capability: str, taken: Sequence[Place]) -> None:
        """Let nodes that were taken, and could not be claimed yet, wait before all others."""
        for level, node_key in reversed(taken):
            waiting = self._waiting.setdefault(capability, {}).setdefault(level, OrderedDict())
            waiting[node_key] = None
            waiting.move_to_end(node_key, last=False)

    def clear(self) -> None:
        """Remove all waiting nodes, because the shard is read again or is no longer owned."""
        self._waiting.clear()

    def _remove(self, capability: str, level: str, node_key: NodeKey) -> None:
        levels = self._waiting[capability]
        del levels[level][node_key]
        if not levels[level]:
            del levels[level]
        if not levels:
            del self._waiting[capability]
