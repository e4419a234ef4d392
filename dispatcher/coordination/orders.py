"""The workflows that schedules and triggers start: checked and stored once, and started later any number of times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coditect.errors import InvalidTask, InvalidWorkflow
from coditect.wire.json import dumps, loads
from coditect.workflow.documents.document import child_document, head_document, node_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.graph import check_definition, children_of
from dispatcher.ledger import values
from dispatcher.ledger.values import ValueKey
from dispatcher.ledger.workflows import submit
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import text
from dispatcher.store.transaction import Reads, Transaction

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read_name(body: Body, by: str) -> str:
    """Return the name that a request gives to a schedule or trigger, which is the field of that name.

    Raises:
        InvalidTask: when it is no such name.
    """
    name = text(body, by)
    if _NAME.fullmatch(name) is None:
        raise InvalidTask(f"A {by}'s name is letters, digits, dots, hyphens and _", given=name[:120])
    return name


def read_order(document: object, by: str) -> dict[str, Any]:
    """Check the definition of a schedule's or trigger's workflow; return its start request, without id and input.

    `by` is the kind of thing that keeps it, for the texts of errors.

    Raises:
        InvalidWorkflow: when the document is no workflow, or one with too many nodes.
    """
    from coditect.workflow.documents.reader import from_document  # noqa: PLC0415 - 5 MB: pydantic

    definition = from_document(document)
    graph = check_definition(definition, others=check_expressions(definition))
    if len(graph.order) > submit.MOST_CHUNK_NODES:
        fix = f"let the {by}'s workflow have a task that starts the large one"
        limit = submit.MOST_CHUNK_NODES
        raise InvalidWorkflow(f"A {by}'s workflow has too many nodes", count=len(graph.order), most=limit, fix=fix)
    nodes = {name: node_document(graph.nodes[name]) for name in graph.order}
    children = {child.name: child_document(child) for child in children_of(definition)}
    order = {"description": "", **head_document(definition), "count": len(graph.order), "nodes": nodes}
    return order | ({"workflows": children} if children else {})


def write(tr: Transaction, name: str, by: str, order: Mapping[str, Any]) -> None:
    """Store the request that starts a schedule's or trigger's workflow (`by` tells which), or a trigger's signal value.

    Raises:
        ValueBeyondBound: when it is larger than one value may be.
    """
    values.put(tr, ValueKey("", name, by), dumps(order))


def read(tr: Reads, name: str, by: str) -> dict[str, Any]:
    """Return the stored request that starts a schedule's or trigger's workflow; for a signal only its `input`.

    Raises:
        DamagedValue: when the value is not what was written.
    """
    return dict(loads(values.get(tr, ValueKey("", name, by)) or b"{}"))


def clear(tr: Transaction, name: str, by: str) -> None:
    """Remove the stored request that starts a schedule's or trigger's workflow, or a trigger's signal value."""
    values.clear(tr, ValueKey("", name, by))
