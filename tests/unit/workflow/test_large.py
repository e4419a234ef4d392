"""A hundred thousand nodes of three predecessors: what is not linear here never ends."""

from __future__ import annotations

import pytest

from coditect.workflow.definition import MAX_WORKFLOW_NODES, After, Call, Definition, Node
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.graph import graph_of
from coditect.workflow.states import Tally, TaskState

pytestmark = pytest.mark.no_cover  # smaller graphs run the same lines

CALL = Call("load.work", {"milliseconds": 1})


def layered(nodes: int, width: int) -> Definition:
    """Layers of `width`, each node after three of the layer before it."""

    def after(number: int) -> tuple[After, ...]:
        if number < width:
            return ()
        first = number // width * width - width
        return tuple(After(f"n{first + (number + step) % width}") for step in range(3))

    return Definition("large", tuple(Node(f"n{number}", CALL, after(number)) for number in range(nodes)))


@pytest.mark.proof
def test_a_hundred_thousand_nodes_are_written_read_ordered_and_run() -> None:
    definition = from_document(to_document(layered(MAX_WORKFLOW_NODES, 1_000)))

    graph = graph_of(definition)
    tallies = {name: Tally.of(node) for name, node in graph.nodes.items()}
    states = dict.fromkeys(graph.order, TaskState.BLOCKED)
    for name in graph.order:
        assert tallies[name].decision is TaskState.READY
        states[name] = TaskState.COMPLETED
        for dependent in graph.dependents[name]:
            tallies[dependent] = tallies[dependent].with_end(graph.nodes[dependent].after[0].on_failure, states[name])

    assert len(graph.layers) == MAX_WORKFLOW_NODES // 1_000
