"""Reader of workflow documents from outside, which checks a document by the pydantic models of `schema.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from coditect.errors import InputError, InvalidWorkflow, Problem
from coditect.model.capability import nearest_names
from coditect.workflow import fields
from coditect.workflow.definition import MOST_ELEMENTS, After, Approval, Call, Definition, Node, OnFailure, defined_name
from coditect.workflow.documents import schema
from coditect.workflow.documents.document import known_node
from coditect.workflow.documents.schema import (
    KINDS,
    ChildFields,
    EdgeFields,
    Nodes,
    PlaceFields,
    RepeatFields,
    RetryFields,
    WorkflowFields,
)
from coditect.workflow.rows import NodeRow
from coditect.workflow.template import Path

_NODES: TypeAdapter[Nodes] = TypeAdapter(Nodes)


def from_document(document: object) -> Definition:
    """Convert a workflow document to a definition; `graph_of` checks whether the nodes fit together.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    try:
        read = WorkflowFields.model_validate(document)
    except ValidationError as error:
        problems = tuple(_problems(error))
        named = (
            document if isinstance(document, dict) and all(problem.path != ("name",) for problem in problems) else {}
        )
        raise InvalidWorkflow.of(problems, workflow=named.get("name")) from None
    children = tuple(Definition(name, _nodes(child), child.description) for name, child in read.workflows.items())
    return Definition(read.name, _nodes(read), read.description, dict(read.labels), read.retention, children)


def _nodes(read: WorkflowFields | ChildFields) -> tuple[Node, ...]:
    return tuple(known_node(name, vars(node)) for name, node in read.nodes.items())


def read_node(name: str, document: object) -> Node:
    """Convert one entry of a document's `nodes` to a node, and check the entry.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    try:
        return known_node(name, vars(_NODES.validate_python({name: document})[name]))
    except ValidationError as error:
        raise InvalidWorkflow.of(tuple(_problems(error, ("nodes",))), node=name) from None


def definition_of(name: str, rows: Iterable[NodeRow]) -> Definition:
    """Build a workflow's definition from the reports of its nodes, without inputs, map elements and compensations.

    Raises:
        InvalidWorkflow: when the control plane knows fields that this version does not.
    """
    return Definition(name, tuple(_reported(row) for row in rows if row.name == defined_name(row.name)))


def _reported(row: NodeRow) -> Node:
    edges = tuple(After(name, row.on_failure.get(name, OnFailure.FAIL)) for name in row.after)
    if row.definition:
        return replace(read_node(row.name, row.definition), after=edges)
    work = Approval(row.question or row.name) if row.kind == "approval" else Call(row.capability)
    return Node(row.name, work, edges)


_OBJECTS = {
    WorkflowFields.__name__: "A workflow is",
    ChildFields.__name__: "A workflow is",
    EdgeFields.__name__: "An edge is a node's name or",
}


def _problems(error: ValidationError, above: tuple[str | int, ...] = ()) -> Iterator[Problem]:
    for details in error.errors(include_url=False):
        yield from _problem(details, (*above, *details["loc"]))


def _problem(error: ErrorDetails, location: tuple[str | int, ...]) -> Iterator[Problem]:
    """Yield what a pydantic error says is wrong in a document, with the path; nothing if another error says it."""
    path, value, facts = _path(location), error["input"], error.get("ctx", {})
    match error["type"]:
        case schema.REFUSED if location[-1] == "[key]":
            yield Problem(path, facts["error"].sentence, "rename it")
        case schema.REFUSED:
            yield _refusal(path, facts["error"])
        case "missing":
            name = str(path[-1])
            hint = f", how many elements its list may have at most (1 to {MOST_ELEMENTS})" if name == "limit" else ""
            yield Problem(path[:-1], f"The field {name!r} is missing", f"add `{name}:`{hint}")
        case "extra_forbidden" | "invalid_key":
            name = str(path[-1])
            yield Problem(path, f"There is no field {name!r} here", fields.nearest(name, _names(location)))
        case "union_tag_not_found":
            yield from _no_kind(path, value)
        case "list_type":
            yield Problem(path, "`after` is a list of nodes", "write it as a list: [one, other]")
        case "model_type" | "dict_type":
            yield _no_object(path, _OBJECTS.get(facts.get("class_name", ""), "`nodes` is"), value)
        case "string_unicode":
            yield Problem(path, "A field's name is no text in UTF-8", "rename it")
        case _:  # an edge that is no text is no object of fields either, which is told
            pass


def _refusal(path: Path, error: InputError) -> Problem:
    facts = {fact: value for fact, value in error.facts.items() if fact != "fix"}
    return Problem(path, str(InputError(error.sentence, **facts)), str(error.facts.get("fix", "")))


def _no_object(path: Path, subject: str, value: object) -> Problem:
    return Problem(path, f"{subject} an object of fields, not {type(value).__name__}", "see the example")


def _no_kind(path: Path, node: object) -> Iterator[Problem]:
    """Yield the problems of a node with no kind (task, map, ...) or several, and of its fields that every kind has."""
    if not isinstance(node, dict):
        yield _no_object(path, "A node is", node)
        return
    sentence = (
        f"A node is one of {', '.join(KINDS)}; this one is {' and '.join(schema.kinds_of(node)) or 'none of them'}"
    )
    others = [name for name in node if isinstance(name, str) and name not in PlaceFields.model_fields]
    meant = [near for name in others for near in nearest_names(name, KINDS)] if not schema.kinds_of(node) else []
    yield Problem(path, sentence, f"did you mean {meant[0]}?" if meant else "give it one of these fields")
    try:
        PlaceFields.model_validate({name: node[name] for name in PlaceFields.model_fields if name in node})
    except ValidationError as error:
        yield from _problems(error, (*path, ""))


def _path(location: tuple[str | int, ...]) -> Path:
    """Return pydantic's location of an error as a path in the document, without the names of union alternatives."""
    match location:
        case ("workflows", name, *rest):
            return ("workflows", name, *_path(tuple(rest)))
        case ("nodes", name, _, "after", number, _, *rest):
            return ("nodes", name, "after", number, *rest)
        case ("nodes", name, _, *rest):
            return ("nodes", name, *rest)
        case _:
            return location


def _names(location: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the names of all fields allowed in an object, given pydantic's location of one field in the object."""
    match location:
        case ("workflows", _, *rest):
            return _names(tuple(rest)) if len(rest) > 1 else tuple(ChildFields.model_fields)
        case ("nodes", _, _, "after", _, _, _):
            return tuple(EdgeFields.model_fields)
        case ("nodes", _, _, "repeat" | "retry" as policy, _):
            return tuple((RepeatFields if policy == "repeat" else RetryFields).model_fields)
        case ("nodes", _, str(kind), _):
            return kind, *(name for name in KINDS[kind].model_fields if name != kind)
        case _:
            return tuple(WorkflowFields.model_fields)
