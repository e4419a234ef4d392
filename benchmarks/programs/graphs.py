"""The measured graphs: layers of no-op nodes, each after some or all of the nodes of the layer before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, Self

AT_ONCE = 64
TEXT = "The quick brown fox jumps over the lazy dog. "
"""The input and the result of every node."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a graph, by its number; its predecessors are in the layer before it."""

    number: int
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of layers, with `widths` nodes in each."""

    name: str
    widths: tuple[int, ...]
    predecessors: int | None = None
    """The number of predecessors of each node in the layer before it; None means all of that layer."""

    @property
    def nodes(self) -> int:
        """The number of nodes of the graph."""
        return sum(self.widths)

    @property
    def sinks(self) -> range:
        """The numbers of the nodes in the last layer."""
        return range(self.nodes - self.widths[-1], self.nodes)

    def layers(self) -> Iterator[list[Node]]:
        """Yield the graph's layers of nodes, in order."""
        first, before = 0, range(0)
        for width in self.widths:
            numbers = range(first, first + width)
            yield [Node(number, self._after(number - first, before)) for number in numbers]
            first, before = first + width, numbers

    def _after(self, place: int, before: range) -> tuple[int, ...]:
        if self.predecessors is None or self.predecessors >= len(before):
            return tuple(before)
        return tuple(before[(place + step) % len(before)] for step in range(self.predecessors))


def fan(width: int) -> Graph:
    """Return a fan: one node, then `width` nodes side by side, then one node after all of them."""
    return Graph("fan", (1, width, 1))


def chain(length: int) -> Graph:
    """Return a chain of nodes, one after the other."""
    return Graph("chain", (1,) * length)


def layered(layers: int, width: int) -> Graph:
    """Return layers whose nodes come after three nodes of the layer before."""
    return Graph("layered", (width,) * layers, 3)


@dataclass(frozen=True, slots=True)
class GraphOrder:
    """The instructions for a client: runs of one graph, one after the other."""

    driver: str
    """The module of the side; its `open_runner()` yields a `GraphRunner`."""
    warm_up: Graph
    """The graph that is run once before, and does not count."""
    graph: Graph
    runs: int
    many: int = 1
    """The number of graphs in a run, `AT_ONCE` of them side by side."""

    def written(self) -> str:
        """Return the order as JSON text, for a client's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Self:
        """Read an order from the JSON text of `written`."""
        fields = json.loads(text)
        graphs = {name: _graph(fields[name]) for name in ("warm_up", "graph")}
        return cls(**{**fields, **graphs})


def _graph(fields: dict[str, object]) -> Graph:
    widths = fields["widths"]
    assert isinstance(widths, list)
    return Graph(**{**fields, "widths": tuple(widths)})  # type: ignore[arg-type]


class GraphRunner(Protocol):
    """A connected side that runs graphs."""

    async def run(self, graph: Graph) -> None:
        """Submit a graph, wait until all of it is done, and check the results of its last layer."""


def check_sinks(graph: Graph, values: Sequence[object]) -> None:
    """Raise an error unless the results of the last layer are right and in order.

    Raises:
        ValueError: when a result differs from the node's input.
    """
    if list(values) != [{"number": number, "text": TEXT} for number in graph.sinks]:
        raise ValueError(f"the last layer of {graph.name} gave something else: {values!r:.200}")
