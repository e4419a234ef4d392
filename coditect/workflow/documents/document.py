"""Conversion of workflow definitions to documents, and of stored nodes back; a file holds a document as YAML or JSON.

`to_document` and `from_document` of `reader.py` are each other's reverse. Fields with their default value are
left out. This module does not import pydantic: a program that only reads what was checked before does without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, assert_never

from coditect.model.capability import Priority
from coditect.model.duration import duration_text
from coditect.model.retry import Retry
from coditect.workflow import fields
from coditect.workflow.definition import (
    After,
    Approval,
    AwaitSignal,
    Call,
    Definition,
    Each,
    Node,
    OnFailure,
    OnTimeout,
    Repeat,
    Rest,
    SubWorkflow,
    WaitFor,
    WaitUntil,
    Work,
)

if TYPE_CHECKING:
    from coditect.workflow.documents.schema import EdgeFields, RepeatFields, RetryFields

_PRIORITIES = {priority.value: priority for priority in Priority}


def known_node(name: str, document: Mapping[str, Any]) -> Node:
    """Build a node from fields that were checked before: those of a pydantic model, or a stored node document.

    Nothing is checked again: what was stored once stays readable, whatever is refused later.
    """
    after = document.get("after")
    edges = tuple(map(_edge, after)) if after else ()
    rest = Rest(document.get("rest", Rest.KEEP))
    join, when, least = document.get("join", "all"), document.get("when"), document.get("least")
    return Node(name, _work(document), edges, join, when, rest, least)


def _work(document: Mapping[str, Any]) -> Work:
    if (capability := document.get("task")) is not None:
        return _call(capability, document)
    if (capability := document.get("map")) is not None:
        return Each(_call(capability, document), document["over"], document["limit"])
    if (workflow := document.get("workflow")) is not None:
        return SubWorkflow(workflow, document.get("input"), _retry(document.get("retry")), document.get("compensate"))
    if "approval" not in document:
        return _wait(document)
    on_timeout = OnTimeout(document.get("on_timeout", OnTimeout.REJECT))
    artifacts = dict(document.get("artifacts") or {})
    return Approval(document["approval"], _period_ms(document.get("timeout")), on_timeout, artifacts)


def _wait(document: Mapping[str, Any]) -> Work:
    if (signal := document.get("await_signal")) is not None:
        return AwaitSignal(signal, _period_ms(document.get("timeout")))
    if (instant := document.get("wait_until")) is not None:
        return WaitUntil(instant)
    return WaitFor(_period_ms(document["wait"]) or 0)


def _call(capability: str, document: Mapping[str, Any]) -> Call:
    return Call(
        capability,
        document.get("input"),
        _PRIORITIES[document["priority"]] if "priority" in document else Priority.P1,
        _period_ms(document.get("timeout")),
        _retry(document.get("retry")),
        document.get("compensate"),
        _period_ms(document.get("start_within")),
        _period_ms(document.get("deadline")),
        _period_ms(document.get("heartbeat")),
        _repeat(document.get("repeat")),
        fields.task_delay(delay) if isinstance(delay := document.get("delay"), str) else delay,
    )


def _retry(document: RetryFields | Mapping[str, Any] | None) -> Retry | None:
    return None if document is None else Retry(**(document if isinstance(document, Mapping) else vars(document)))


def _repeat(document: RepeatFields | Mapping[str, Any] | None) -> Repeat | None:
    if document is None:
        return None
    values = document if isinstance(document, Mapping) else vars(document)
    return Repeat(values["until"], values["most"], _period_ms(values.get("every")) or 0)


def _period_ms(period: str | int | None) -> int | None:
    """Return a node's period in milliseconds: a number or None as given, and a text such as `5m` converted."""
    return fields.duration_ms(period) if isinstance(period, str) else period


def _edge(edge: str | EdgeFields | Mapping[str, str]) -> After:
    if isinstance(edge, str):
        return After(edge)
    if isinstance(edge, Mapping):
        return After(edge["node"], OnFailure(edge["on_failure"]))
    return After(edge.node, edge.on_failure)


def to_document(definition: Definition) -> dict[str, Any]:
    """Convert a workflow definition to a document of plain JSON values."""
    nodes = {node.name: node_document(node) for node in definition.nodes}
    children = {child.name: child_document(child) for child in definition.workflows}
    return {**head_document(definition), "nodes": nodes} | ({"workflows": children} if children else {})


def child_document(definition: Definition) -> dict[str, Any]:
    """Convert a sub-workflow's definition to a document of description and nodes; its name is its key in the parent."""
    nodes = {node.name: node_document(node) for node in definition.nodes}
    return _given({"description": definition.description or None, "nodes": nodes})


def head_document(definition: Definition) -> dict[str, Any]:
    """Return a workflow document without its nodes: the name and, if given, description, labels and retention."""
    return _given(
        {
            "name": definition.name,
            "description": definition.description or None,
            "labels": dict(definition.labels) or None,
            "retention": _period(definition.retention_ms),
        }
    )


def node_document(node: Node) -> dict[str, Any]:
    """Convert a node to a document: an object of its fields, without the name."""
    return _given(
        {
            **_work_document(node.work),
            "after": [_edge_document(edge) for edge in node.after] or None,
            "join": None if node.join == "all" else node.join,
            "when": node.when,
            "rest": None if node.rest is Rest.KEEP else node.rest.value,
            "least": node.least,
        }
    )


def _given(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if value is not None}


def _period(period_ms: int | None) -> str | None:
    return None if period_ms is None else duration_text(period_ms)


def _edge_document(edge: After) -> Any:
    if edge.on_failure is OnFailure.FAIL:
        return edge.node
    return {"node": edge.node, "on_failure": edge.on_failure.value}


def _work_document(work: Work) -> dict[str, Any]:
    document: dict[str, Any]
    match work:
        case Call():
            document = {"task": work.capability, **_call_document(work)}
        case Each(call=call):
            document = {"map": call.capability, "over": work.over, "limit": work.limit, **_call_document(call)}
        case Approval(question=question, on_timeout=then):
            document = {
                "approval": question,
                "timeout": _period(work.timeout_ms),
                "on_timeout": None if then is OnTimeout.REJECT else then.value,
                "artifacts": dict(work.artifacts) or None,
            }
        case WaitFor(period_ms=period_ms):
            document = {"wait": duration_text(period_ms)}
        case WaitUntil(instant=instant):
            document = {"wait_until": instant}
        case AwaitSignal(signal=signal, timeout_ms=waits):
            document = {"await_signal": signal, "timeout": _period(waits)}
        case SubWorkflow(workflow=name, input=given, compensate=undo):
            document = {"workflow": name, "input": given, "retry": _retry_document(work.retry), "compensate": undo}
        case _:
            assert_never(work)
    return document


def _call_document(call: Call) -> dict[str, Any]:
    delay, repeat = call.delay, call.repeat
    return {
        "input": call.input,
        "priority": None if call.priority is Priority.P1 else call.priority.value,
        "timeout": _period(call.timeout_ms),
        "start_within": _period(call.start_within_ms),
        "deadline": _period(call.deadline_ms),
        "heartbeat": _period(call.heartbeat_ms),
        "retry": _retry_document(call.retry),
        "compensate": call.compensate,
        "delay": duration_text(delay) if isinstance(delay, int) else delay,
        "repeat": None if repeat is None else _repeat_document(repeat),
    }


def _retry_document(retry: Retry | None) -> dict[str, Any] | None:
    return None if retry is None else {"max_attempts": retry.max_attempts, "first": retry.first, "cap": retry.cap}


def _repeat_document(repeat: Repeat) -> dict[str, Any]:
    return _given({"until": repeat.until, "most": repeat.most, "every": _period(repeat.every_ms or None)})
