"""Conversion between definitions and documents, the content of a YAML or JSON file, as `docs/workflows.md` lists.

`to_document` and `from_document` are each other's reverse. Fields with their default value are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from coditect.errors import InputError, InvalidWorkflow, Problem
from coditect.model.capability import Priority
from coditect.model.duration import duration_text
from coditect.model.retry import Retry
from coditect.workflow import fields
from coditect.workflow.definition import (
    After,
    Approval,
    Call,
    Definition,
    Each,
    Node,
    OnFailure,
    OnTimeout,
    Work,
    check_node_name,
    check_workflow_name,
)
from coditect.workflow.template import Path

WORKFLOW_FIELDS = ("name", "description", "nodes")
PLACE_FIELDS = ("after", "join", "when")
CALL_FIELDS = ("input", "priority", "timeout", "start_within", "deadline", "heartbeat", "retry", "compensate")
KINDS = {
    "task": CALL_FIELDS,
    "map": ("over", "limit", *CALL_FIELDS),
    "approval": ("timeout", "on_timeout"),
}
"""The kinds of nodes, each with its fields beside those of the node's place."""
EDGE_FIELDS = ("node", "on_failure")
_LEVELS = {level.value: level for level in Priority}

T = TypeVar("T")
D = TypeVar("D")


def to_document(definition: Definition) -> dict[str, Any]:
    """Convert a workflow definition to a document of plain JSON values."""
    document: dict[str, Any] = {"name": definition.name}
    if definition.description:
        document["description"] = definition.description
    return document | {"nodes": {node.name: node_document(node) for node in definition.nodes}}


def from_document(document: object) -> Definition:
    """Convert a workflow document to a definition; `graph_of` checks whether the nodes fit together.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    problems: list[Problem] = []
    top = _Fields.of(document, (), problems, "A workflow")
    top.refuse_others(WORKFLOW_FIELDS)
    name = top.need("name", lambda value: check_workflow_name(fields.text(value)), "")
    description = top.take("description", fields.text, "")
    nodes = _Fields.of(top.need("nodes", lambda value: value, {}), ("nodes",), problems, "`nodes`")
    read = tuple(_node(str(one), nodes.document[one], problems) for one in nodes.document)
    if problems:
        raise InvalidWorkflow.of(tuple(problems), workflow=name or None)
    return Definition(name, read, description)


def read_node(name: str, document: object) -> Node:
    """Convert one entry of a document's `nodes` to a node, and check the entry.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    problems: list[Problem] = []
    node = _node(name, document, problems)
    if problems:
        raise InvalidWorkflow.of(tuple(problems), node=name)
    return node


def known_node(name: str, document: Mapping[str, Any]) -> Node:
    """Convert a document of `node_document` to a node without checks, three times as fast as `read_node`."""
    after = document.get("after")
    return Node(
        name,
        _known_work(document),
        () if after is None else tuple(map(_known_edge, after)),
        document.get("join", "all"),
        document.get("when"),
    )


def _known_work(document: Mapping[str, Any]) -> Work:
    if (capability := document.get("task")) is not None:
        return _known_call(capability, document)
    if (capability := document.get("map")) is not None:
        return Each(_known_call(capability, document), document["over"], document["limit"])
    on_timeout = OnTimeout(document.get("on_timeout", OnTimeout.REJECT))
    return Approval(document["approval"], _known_duration(document.get("timeout")), on_timeout)


def _known_call(capability: str, document: Mapping[str, Any]) -> Call:
    retry = document.get("retry")
    return Call(
        capability,
        document.get("input"),
        _LEVELS[document["priority"]] if "priority" in document else Priority.P1,
        _known_duration(document.get("timeout")),
        None if retry is None else fields.retry(retry),
        document.get("compensate"),
        _known_duration(document.get("start_within")),
        _known_duration(document.get("deadline")),
        _known_duration(document.get("heartbeat")),
    )


def _known_duration(text: str | None) -> int | None:
    return None if text is None else fields.duration_ms(text)


def _known_edge(edge: str | Mapping[str, str]) -> After:
    return After(edge) if isinstance(edge, str) else After(edge["node"], OnFailure(edge["on_failure"]))


@dataclass(frozen=True, slots=True)
class _Fields:
    """An object inside a workflow document, with its path; collects the problems of its fields."""

    document: Mapping[str, Any]
    path: Path
    problems: list[Problem]

    @classmethod
    def of(cls, value: object, path: Path, problems: list[Problem], what: str) -> _Fields:
        if isinstance(value, Mapping):
            return cls(value, path, problems)
        problems.append(Problem(path, f"{what} is an object of fields, not {type(value).__name__}", "see the example"))
        return cls({}, path, problems)

    def refuse(self, sentence: str, fix: str, *below: str) -> None:
        self.problems.append(Problem((*self.path, *below), sentence, fix))

    def refuse_others(self, known: tuple[str, ...]) -> None:
        for name in self.document:
            if name not in known:
                self.refuse(f"There is no field {name!r} here", fields.nearest(str(name), known), str(name))

    def take(self, name: str, read: Callable[[Any], T], default: D) -> T | D:
        """Return a field's value, or the default where the field is absent or refused."""
        if name not in self.document:
            return default
        try:
            return read(self.document[name])
        except InputError as error:
            told = {fact: value for fact, value in error.facts.items() if fact != "fix"}
            self.refuse(str(InputError(error.sentence, **told)), str(error.facts.get("fix", "")), name)
            return default

    def need(self, name: str, read: Callable[[Any], T], default: D, hint: str = "") -> T | D:
        """Return a required field's value; note a problem and return the default where the field is absent.

        Only an object can lack a field: a value that was no object has been noted already.
        """
        if name not in self.document and (self.document or not self.problems):
            self.refuse(f"The field {name!r} is missing", hint or f"add `{name}:`")
        return self.take(name, read, default)


def _node(name: str, document: object, problems: list[Problem]) -> Node:
    one = _Fields.of(document, ("nodes", name), problems, "A node")
    try:
        check_node_name(name)
    except InputError as error:
        one.refuse(error.sentence, "rename it")
    after = _after(one)
    return Node(
        name, _work(one), after, one.take("join", fields.join, "all"), one.take("when", fields.expression, None)
    )


def _after(one: _Fields) -> tuple[After, ...]:
    given = one.document.get("after", [])
    if not isinstance(given, list):
        one.refuse("`after` is a list of nodes", "write it as a list: [one, other]", "after")
        return ()
    return tuple(_edge(edge, (*one.path, "after", number), one.problems) for number, edge in enumerate(given))


def _edge(edge: object, path: Path, problems: list[Problem]) -> After:
    if isinstance(edge, str):
        return After(edge)
    fine = _Fields.of(edge, path, problems, "An edge is a node's name or")
    fine.refuse_others(EDGE_FIELDS)
    name = fine.need("node", fields.text, "")
    return After(name, fine.take("on_failure", fields.one_of(OnFailure), OnFailure.FAIL))


def _work(one: _Fields) -> Work:
    kinds = [kind for kind in KINDS if kind in one.document]
    if len(kinds) != 1:
        if one.document:
            sentence = f"A node is one of {', '.join(KINDS)}; this one is {' and '.join(kinds) or 'none of them'}"
            one.refuse(sentence, "give it one of these fields")
        return Approval("")
    kind = kinds[0]
    one.refuse_others((kind, *PLACE_FIELDS, *KINDS[kind]))
    match kind:
        case "task":
            return _call(one, "task")
        case "map":
            over = one.need("over", fields.expression, "")
            hint = "add `limit:`, how many elements its list may have at most (1 to 10000)"
            return Each(_call(one, "map"), over, one.need("limit", fields.limit, 1, hint))
        case _:
            return Approval(
                one.need("approval", fields.some_text, ""),
                one.take("timeout", fields.duration_ms, None),
                one.take("on_timeout", fields.one_of(OnTimeout), OnTimeout.REJECT),
            )


def _call(one: _Fields, kind: str) -> Call:
    return Call(
        one.need(kind, fields.capability, ""),
        one.take("input", fields.template, None),
        one.take("priority", fields.priority, Priority.P1),
        one.take("timeout", fields.duration_ms, None),
        one.take("retry", fields.retry, None),
        one.take("compensate", fields.capability, None),
        one.take("start_within", fields.duration_ms, None),
        one.take("deadline", fields.duration_ms, None),
        one.take("heartbeat", fields.heartbeat_ms, None),
    )


def node_document(node: Node) -> dict[str, Any]:
    """Convert a node to a document of its fields, without the name."""
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
