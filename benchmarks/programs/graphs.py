"""The graphs that are measured: layers of no-op nodes, each after some or all of the layer before it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, Self

AT_ONCE = 64
TEXT = "The quick brown fox jumps over the lazy dog. "
"""What every node is given and gives back."""


@dataclass(frozen=True, slots=True)
class Node:
    """One of a graph, by its number; its predecessors are of the layer before it."""

    number: int
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """So many nodes in each layer."""

    name: str
    widths: tuple[int, ...]
    predecessors: int | None = None
    """Of each node in the layer before it; all of them when None."""

    @property
    def nodes(self) -> int:
        """How many it has."""
        return sum(self.widths)

    @property
    def sinks(self) -> range:
        """The numbers of the last layer."""
        return range(self.nodes - self.widths[-1], self.nodes)

    def layers(self) -> Iterator[list[Node]]:
        """The layers, in order."""
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
    """One node, then so many side by side, then one after all of them."""
    return Graph("fan", (1, width, 1))


def chain(length: int) -> Graph:
    """One after the other."""
    return Graph("chain", (1,) * length)


def layered(layers: int, width: int) -> Graph:
    """Layers whose nodes come after three of the layer before."""
    return Graph("layered", (width,) * layers, 3)


@dataclass(frozen=True, slots=True)
class GraphOrder:
    """What a client is told to measure: runs of one graph, one after the other."""

    driver: str
    """The module of the side; its `open_runner()` gives a `GraphRunner`."""
    warm_up: Graph
    """Run once before; it does not count."""
    graph: Graph
    runs: int
    many: int = 1
    """Graphs of a run, `AT_ONCE` of them side by side."""

    def written(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Self:
        """From JSON."""
        fields = json.loads(text)
        graphs = {name: _graph(fields[name]) for name in ("warm_up", "graph")}
        return cls(**{**fields, **graphs})


def _graph(fields: dict[str, object]) -> Graph:
    widths = fields["widths"]
    assert isinstance(widths, list)
    return Graph(**{**fields, "widths": tuple(widths)})  # type: ignore[arg-type]


class GraphRunner(Protocol):
    """One side, connected."""

    async def run(self, graph: Graph) -> None:
        """Submits the graph, and waits until all of it is done; checks what its last layer gave."""


def check_sinks(graph: Graph, values: Sequence[object]) -> None:
    """Whether these are the results of the last layer, in order. Raises: ValueError."""
    if list(values) != [{"number": number, "text": TEXT} for number in graph.sinks]:
        raise ValueError(f"the last layer of {graph.name} gave something else: {values!r:.200}")
