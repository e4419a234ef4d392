"""Conversion between workflow definitions and documents, which are the content of a YAML or JSON file.

`to_document` and `from_document` are each other's reverse. Fields with their default value are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from coditect.errors import InputError, InvalidWorkflow, Problem
from coditect.model.capability import Priority
from coditect.model.duration import duration_text
from coditect.model.retry import Retry
from coditect.workflow import fields, schema
from coditect.workflow.definition import (
    MOST_ELEMENTS,
    After,
    Approval,
    AwaitSignal,
    Call,
    Definition,
    Each,
    Node,
    OnFailure,
    OnTimeout,
    WaitFor,
    WaitUntil,
    Work,
    defined_name,
)
from coditect.workflow.rows import NodeRow
from coditect.workflow.schema import KINDS, EdgeFields, Nodes, PlaceFields, RetryFields, WorkflowFields
from coditect.workflow.template import Path

_NODES: TypeAdapter[Nodes] = TypeAdapter(Nodes)
_PRIORITIES = {priority.value: priority for priority in Priority}


def from_document(document: object) -> Definition:
    """Convert a workflow document to a definition; `graph_of` checks whether the nodes fit together.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    try:
        read = WorkflowFields.model_validate(document)
    except ValidationError as error:
        problems = tuple(_problems(error))
        named = document if isinstance(document, dict) and all(one.path != ("name",) for one in problems) else {}
        raise InvalidWorkflow.of(problems, workflow=named.get("name")) from None
    return Definition(
        read.name, tuple(known_node(name, vars(node)) for name, node in read.nodes.items()), read.description
    )


def read_node(name: str, document: object) -> Node:
    """Convert one entry of a document's `nodes` to a node, and check the entry.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    try:
        return known_node(name, vars(_NODES.validate_python({name: document})[name]))
    except ValidationError as error:
        raise InvalidWorkflow.of(tuple(_problems(error, ("nodes",))), node=name) from None


def known_node(name: str, given: Mapping[str, Any]) -> Node:
    """Build a node from fields that were checked before: those of a pydantic model, or a stored node document.

    Nothing is checked again: what was stored once stays readable, whatever is refused later.
    """
    after = given.get("after")
    edges = tuple(map(_edge, after)) if after else ()
    return Node(name, _work(given), edges, given.get("join", "all"), given.get("when"))


def _work(given: Mapping[str, Any]) -> Work:
    if (capability := given.get("task")) is not None:
        return _call(capability, given)
    if (capability := given.get("map")) is not None:
        return Each(_call(capability, given), given["over"], given["limit"])
    if "approval" not in given:
        return _wait(given)
    on_timeout = OnTimeout(given.get("on_timeout", OnTimeout.REJECT))
    return Approval(given["approval"], _period_ms(given.get("timeout")), on_timeout)


def _wait(given: Mapping[str, Any]) -> Work:
    if (signal := given.get("await_signal")) is not None:
        return AwaitSignal(signal, _period_ms(given.get("timeout")))
    if (instant := given.get("wait_until")) is not None:
        return WaitUntil(instant)
    return WaitFor(_period_ms(given["wait"]) or 0)


def _call(capability: str, given: Mapping[str, Any]) -> Call:
    retry = given.get("retry")
    return Call(
        capability,
        given.get("input"),
        _PRIORITIES[given["priority"]] if "priority" in given else Priority.P1,
        _period_ms(given.get("timeout")),
        None if retry is None else Retry(**(retry if isinstance(retry, Mapping) else vars(retry))),
        given.get("compensate"),
        _period_ms(given.get("start_within")),
        _period_ms(given.get("deadline")),
        _period_ms(given.get("heartbeat")),
    )


def _period_ms(period: str | int | None) -> int | None:
    """Return a node's period in milliseconds: a number as given, and a text such as `5m` converted."""
    return fields.duration_ms(period) if isinstance(period, str) else period


def _edge(edge: str | EdgeFields | Mapping[str, str]) -> After:
    if isinstance(edge, str):
        return After(edge)
    if isinstance(edge, EdgeFields):
        return After(edge.node, edge.on_failure)
    return After(edge["node"], OnFailure(edge["on_failure"]))


def definition_of(name: str, rows: Iterable[NodeRow]) -> Definition:
    """Build a workflow's definition from the node rows of a run, without inputs, elements and compensations.

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


_OBJECTS = {WorkflowFields.__name__: "A workflow is", EdgeFields.__name__: "An edge is a node's name or"}


def _problems(error: ValidationError, above: tuple[str | int, ...] = ()) -> Iterator[Problem]:
    for one in error.errors(include_url=False):
        yield from _problem(one, (*above, *one["loc"]))


def _problem(error: ErrorDetails, location: tuple[str | int, ...]) -> Iterator[Problem]:
    """Convert a pydantic validation error to problems for a person, each with its path in the document and a fix."""
    path, given, facts = _path(location), error["input"], error.get("ctx", {})
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
            yield from _no_kind(path, given)
        case "list_type":
            yield Problem(path, "`after` is a list of nodes", "write it as a list: [one, other]")
        case "model_type" | "dict_type":
            yield _no_object(path, _OBJECTS.get(facts.get("class_name", ""), "`nodes` is"), given)
        case "string_unicode":
            yield Problem(path, "A field's name is no text in UTF-8", "rename it")
        case _:  # an edge that is no text is no object of fields either, which is told
            pass


def _refusal(path: Path, error: InputError) -> Problem:
    told = {fact: value for fact, value in error.facts.items() if fact != "fix"}
    return Problem(path, str(InputError(error.sentence, **told)), str(error.facts.get("fix", "")))


def _no_object(path: Path, what: str, given: object) -> Problem:
    return Problem(path, f"{what} an object of fields, not {type(given).__name__}", "see the example")


def _no_kind(path: Path, given: object) -> Iterator[Problem]:
    """Yield the problems of a node whose kind, such as task or map, is unknown, and of its place in the graph."""
    if not isinstance(given, dict):
        yield _no_object(path, "A node is", given)
        return
    sentence = (
        f"A node is one of {', '.join(KINDS)}; this one is {' and '.join(schema.kinds_of(given)) or 'none of them'}"
    )
    yield Problem(path, sentence, "give it one of these fields")
    try:
        PlaceFields.model_validate({name: given[name] for name in PlaceFields.model_fields if name in given})
    except ValidationError as error:
        yield from _problems(error, (*path, ""))


def _path(location: tuple[str | int, ...]) -> Path:
    """Return pydantic's location of an error as a path in the document, without the names of union alternatives."""
    match location:
        case ("nodes", name, _, "after", number, _, *rest):
            return ("nodes", name, "after", number, *rest)
        case ("nodes", name, _, *rest):
            return ("nodes", name, *rest)
        case _:
            return location


def _names(location: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the field names that the object at a location of the document may have."""
    match location:
        case ("nodes", _, _, "after", _, _, _):
            return tuple(EdgeFields.model_fields)
        case ("nodes", _, _, "retry", _):
            return tuple(RetryFields.model_fields)
        case ("nodes", _, str(kind), _):
            return kind, *(name for name in KINDS[kind].model_fields if name != kind)
        case _:
            return tuple(WorkflowFields.model_fields)


def to_document(definition: Definition) -> dict[str, Any]:
    """Convert a workflow definition to a document of plain JSON values."""
    described = {"description": definition.description} if definition.description else {}
    nodes = {node.name: node_document(node) for node in definition.nodes}
    return {"name": definition.name, **described, "nodes": nodes}


def node_document(node: Node) -> dict[str, Any]:
    """Convert a node to a document: an object of its fields, without the name."""
    document: dict[str, Any] = _work_document(node.work)
    if node.after:
        document["after"] = [_edge_document(edge) for edge in node.after]
    if node.join != "all":
        document["join"] = node.join
    if node.when is not None:
        document["when"] = node.when
    return document


def _edge_document(edge: After) -> Any:
    if edge.on_failure is OnFailure.FAIL:
        return edge.node
    return {"node": edge.node, "on_failure": edge.on_failure.value}


def _work_document(work: Work) -> dict[str, Any]:
    match work:
        case Call():
            return {"task": work.capability} | _call_document(work)
        case Each():
            over = {"over": work.over, "limit": work.limit}
            return {"map": work.call.capability} | over | _call_document(work.call)
        case Approval():
            document: dict[str, Any] = {"approval": work.question}
            if work.timeout_ms is not None:
                document["timeout"] = duration_text(work.timeout_ms)
            if work.on_timeout is not OnTimeout.REJECT:
                document["on_timeout"] = work.on_timeout.value
            return document
        case WaitFor(period_ms=period_ms):
            return {"wait": duration_text(period_ms)}
        case WaitUntil(instant=instant):
            return {"wait_until": instant}
        case AwaitSignal(signal=signal, timeout_ms=waits):
            return {"await_signal": signal} | ({} if waits is None else {"timeout": duration_text(waits)})


def _call_document(call: Call) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if call.input is not None:
        document["input"] = call.input
    if call.priority is not Priority.P1:
        document["priority"] = call.priority.value
    for name, limit_ms in (
        ("timeout", call.timeout_ms),
        ("start_within", call.start_within_ms),
        ("deadline", call.deadline_ms),
        ("heartbeat", call.heartbeat_ms),
    ):
        if limit_ms is not None:
            document[name] = duration_text(limit_ms)
    if call.retry is not None:
        document["retry"] = _retry_document(call.retry)
    if call.compensate is not None:
        document["compensate"] = call.compensate
    return document


def _retry_document(retry: Retry) -> dict[str, Any]:
    return {"max_attempts": retry.max_attempts, "first": retry.first, "cap": retry.cap}
