"""A workflow on its way to the control plane: in chunks, each of which refers only to itself and to those before it.

All of it is checked and measured before anything is sent, and each chunk is written when its turn comes: what is in
memory beside the definition is one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from coditect.errors import InvalidWorkflow, Problem, SetupError, TooLarge
from coditect.wire.json import dumps
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.definition import MOST_NODES, Definition, Node
from coditect.workflow.document import node_document, to_document
from coditect.workflow.graph import graph_of
from coditect.workflow.template import node_expressions

MOST_NODES_OF_A_CHUNK = 1_000
MOST_EDGES_OF_A_CHUNK = 5_000
"""A node that has more is a chunk of its own. The control plane writes a chunk in one transaction."""
SMALLER = "put a reference into the input in place of what is large: a URL, a path"


@dataclass(frozen=True, slots=True)
class Upload:
    """A workflow cut into chunks. Make it with `cut`."""

    head: dict[str, Any]
    """What is in every chunk."""
    input: Any
    """The workflow's own: in the first chunk."""
    definition: Definition
    """With its nodes in topological order."""
    cuts: tuple[int, ...]
    """Where the chunks begin, and the end."""

    def chunks(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The bodies of the requests, and how many nodes were in them so far."""
        for number, (start, end) in enumerate(pairwise(self.cuts), 1):
            part = replace(self.definition, nodes=self.definition.nodes[start:end])
            first = {"input": self.input} if number == 1 else {}
            chunk = {"chunk": number, "chunks": len(self.cuts) - 1, "nodes": to_document(part)["nodes"]}
            yield self.head | first | chunk, end


def cut(definition: Definition, value: Any, *, workflow: str, key: str | None) -> Upload:
    """Checks the definition, its graph and expressions, and cuts it.

    Raises: InvalidWorkflow; TooLarge when one node, or the input with the first one, is over the inline limit;
    InvalidTask for what JSON cannot say.
    """
    graph = graph_of(definition)
    if problems := _in_expressions(definition):
        raise InvalidWorkflow.of(problems, workflow=definition.name)
    head: dict[str, Any] = {
        "workflow": workflow,
        "name": definition.name,
        "description": definition.description,
        "key": key,
        "count": len(graph.order),
    }
    ordered = replace(definition, nodes=tuple(graph.nodes[name] for name in graph.order))
    return Upload(head, value, ordered, _cuts(ordered, head, len(dumps({"input": value}))))


def _in_expressions(definition: Definition) -> tuple[Problem, ...]:
    """What is wrong with its expressions; nothing where JMESPath is not installed: the control plane looks, too."""
    if not any(True for node in definition.nodes for _ in node_expressions(node)):
        return ()
    try:
        from coditect.workflow.expressions import check_expressions  # noqa: PLC0415 - optional: the extra `workflow`
    except SetupError:
        return ()
    return check_expressions(definition)


def _cuts(definition: Definition, head: dict[str, Any], input_bytes: int) -> tuple[int, ...]:
    room = MAX_BODY_BYTES - len(dumps(head | {"chunk": MOST_NODES, "chunks": MOST_NODES, "nodes": {}}))
    cuts, used, edges = [0], input_bytes, 0
    for number, node in enumerate(definition.nodes):
        size = _bytes(definition, node)
        if size > room:
            raise TooLarge("A node is over the inline limit", node=node.name, bytes=size, limit=room, fix=SMALLER)
        edges += len(node.after)
        if used + size > room or edges > MOST_EDGES_OF_A_CHUNK or number - cuts[-1] >= MOST_NODES_OF_A_CHUNK:
            if not number:
                raise TooLarge("The workflow's input is over the inline limit", bytes=used, limit=room, fix=SMALLER)
            cuts.append(number)
            used, edges = 0, len(node.after)
        used += size
    return (*cuts, len(definition.nodes))


def _bytes(definition: Definition, node: Node) -> int:
    """What the node takes in a chunk, its comma included."""
    return len(dumps({node.name: node_document(node)}))
