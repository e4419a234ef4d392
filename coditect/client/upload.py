"""The upload of a workflow to the control plane in chunks, each of which refers only to itself and earlier chunks.

The whole workflow is checked and measured before anything is sent, and each chunk is encoded when its turn comes:
beside the definition only one chunk is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from coditect.client.options import RequestKey
from coditect.errors import InvalidWorkflow, Problem, SetupError, TooLarge
from coditect.wire.json import dumps
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.definition import MOST_NODES, Definition, Node
from coditect.workflow.documents.document import child_document, head_document, node_document
from coditect.workflow.graph import graph_of
from coditect.workflow.sub_workflows import child_problems, children_of, every_node
from coditect.workflow.template import node_expressions

MOST_NODES_OF_A_CHUNK = 1_000
MOST_EDGES_OF_A_CHUNK = 5_000
"""Most edges of a chunk; a node with more is a chunk of its own. The control plane writes a chunk in one transaction.
"""
MOST_CHILDREN_BYTES = 512 * 1024
"""The largest size in bytes of the definitions of a workflow's children together."""
SMALLER = "put a reference into the input in place of what is large: a URL, a path"


@dataclass(frozen=True, slots=True)
class Upload:
    """A checked workflow, cut into the chunks in which it is sent to the control plane; made by `cut`."""

    head: dict[str, Any]
    """The fields that every chunk of the workflow carries."""
    input: Any
    """The workflow's input, which the first chunk carries."""
    children: dict[str, Any]
    """The documents of the workflows that nodes run as children, by their names, which the first chunk carries."""
    definition: Definition
    """The definition, with its nodes in topological order."""
    cuts: tuple[int, ...]
    """The index of each chunk's first node, and at the end the number of all nodes."""

    def chunks(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the request body of each chunk, and the number of nodes up to the chunk's end."""
        for number, (start, end) in enumerate(pairwise(self.cuts), 1):
            first = {"input": self.input} | self._children() if number == 1 else {}
            nodes = {node.name: node_document(node) for node in self.definition.nodes[start:end]}
            chunk = {"chunk": number, "chunks": len(self.cuts) - 1, "nodes": nodes}
            yield self.head | first | chunk, end

    def _children(self) -> dict[str, Any]:
        return {"workflows": self.children} if self.children else {}


def cut(definition: Definition, value: Any, *, workflow: str, key: str | RequestKey | None) -> Upload:
    """Check a workflow's definition, graph and expressions, and cut the workflow into chunks.

    Raises:
        InvalidWorkflow: when the graph or an expression is wrong.
        TooLarge: when one node, or the input with the first node, is over the inline limit.
        InvalidTask: when a value cannot be written as JSON.
    """
    graph = graph_of(definition)
    if problems := (*child_problems(definition), *_in_expressions(definition)):
        raise InvalidWorkflow.of(problems, workflow=definition.name)
    head: dict[str, Any] = {
        "workflow": workflow,
        **head_document(definition),
        "key": key.key if isinstance(key, RequestKey) else key,
        "count": len(graph.order),
        **({"fingerprint": key.fingerprint} if isinstance(key, RequestKey) else {}),
    }
    ordered = replace(definition, nodes=tuple(graph.nodes[name] for name in graph.order))
    children = {child.name: child_document(child) for child in children_of(definition)}
    if len(dumps(children)) > MOST_CHILDREN_BYTES:
        size, fix = len(dumps(children)), "make them smaller: put references in place of large values"
        raise TooLarge("The sub-workflows are over the limit", bytes=size, limit=MOST_CHILDREN_BYTES, fix=fix)
    cuts = _cuts(ordered, head, len(dumps({"input": value, "workflows": children})))
    return Upload(head, value, children, ordered, cuts)


def _in_expressions(definition: Definition) -> tuple[Problem, ...]:
    """Return the problems in a definition's expressions; none if JMESPath is missing: the control plane checks, too."""
    if not any(True for node in every_node(definition) for _ in node_expressions(node)):
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
        size = _bytes(node)
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


def _bytes(node: Node) -> int:
    """Return the size of a node in a chunk, in bytes, with its comma."""
    return len(dumps({node.name: node_document(node)}))
