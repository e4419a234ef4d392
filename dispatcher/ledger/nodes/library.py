"""The definitions of the child workflows that a workflow's nodes run, submitted and stored with the workflow.

They are one value of the workflow that was started, its root: an object of documents by name, each with its nodes in
topological order. All children in the root's tree begin by it, also when another version of the same name is submitted
meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coditect.errors import InvalidWorkflow
from coditect.wire.json import dumps
from coditect.workflow.definition import Definition, Node, SubWorkflow
from coditect.workflow.documents.document import node_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.graph import child_problems, graph_of
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.inputs import value_of, write
from dispatcher.ledger.unit_of_work import UnitOfWork

SUB_WORKFLOWS_VALUE = "workflows"


def read(documents: object) -> dict[str, Any]:
    """Check the definitions of child workflows in a submission, and return them by name as documents to store.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    if not documents:
        return {}
    from coditect.workflow.documents.reader import from_document  # noqa: PLC0415 - 5 MB: pydantic

    if not isinstance(documents, Mapping) or not all(isinstance(document, Mapping) for document in documents.values()):
        raise InvalidWorkflow("The sub-workflows are an object of workflows by name", given=type(documents).__name__)
    children = tuple(from_document({**document, "name": name}) for name, document in documents.items())
    whole = Definition("", (), workflows=children)
    if problems := (*child_problems(whole), *check_expressions(whole)):
        raise InvalidWorkflow.of(problems)
    return {child.name: _stored(child) for child in children}


def _stored(child: Definition) -> dict[str, Any]:
    graph = graph_of(child)
    nodes = {name: node_document(graph.nodes[name]) for name in graph.order}
    return {"description": child.description, "nodes": nodes}


def check_names(unit: UnitOfWork, workflow: str, nodes: Iterator[Node], known: Mapping[str, Any]) -> None:
    """Check that each node's child workflow is defined in `known` or, if `known` is empty, in the store.

    Raises:
        InvalidWorkflow: when there is such a node.
    """
    wanted = {node.work.workflow: node.name for node in nodes if isinstance(node.work, SubWorkflow)}
    if not wanted:
        return
    there = known or find(unit, workflow)
    for name, node in wanted.items():
        if name not in there:
            fix = "send its definition with the first chunk, under `workflows`"
            raise InvalidWorkflow("There is no workflow of this name here", node=node, given=name, fix=fix)


def put(unit: UnitOfWork, workflow: str, documents: Mapping[str, Any]) -> None:
    """Store the definitions of the child workflows that a new workflow may run.

    Raises:
        ValueBeyondBound: when they are larger than one value may be.
    """
    write(unit, NodeKey(workflow, ""), SUB_WORKFLOWS_VALUE, dumps(documents), first=True)


def find(unit: UnitOfWork, root: str) -> Mapping[str, Any]:
    """Return the definitions of all child workflows that a root workflow and its descendants may run, by name.

    Raises:
        DamagedValue: when they are not what was written.
    """
    return value_of(unit.tr.snapshot, NodeKey(root, ""), SUB_WORKFLOWS_VALUE) or {}
