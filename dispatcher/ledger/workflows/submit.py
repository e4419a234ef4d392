"""The submission of a workflow, which arrives chunk by chunk and is accepted with the last chunk.

The chunks come in topological order, so each refers only to nodes that are stored. The chunks before the last one form
an upload: no query shows it, nothing of it runs, and it is swept when it is not finished. The last chunk's transaction
checks that all nodes are there and accepts: from then on the workflow is never lost. Every chunk may come again. A
chunk is checked as a whole before anything of it is written: a refused chunk leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any
from uuid import UUID

from coditect.errors import InvalidTask, InvalidWorkflow
from coditect.model.ids import is_uuid
from coditect.wire.headers import WORKFLOW_ID, WORKFLOW_NAME, with_members
from coditect.wire.json import dumps
from coditect.workflow import fields
from coditect.workflow.definition import MAX_WORKFLOW_NODES, Definition, Node, OnFailure, check_name
from coditect.workflow.documents.document import known_node, node_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.graph import edge_problems
from coditect.workflow.states import Tally, TaskState, WorkflowState
from dispatcher.ledger import idempotency, versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import ValueBeyondBound
from dispatcher.ledger.keyspace import EDGES, LABELED, LIVE, STATUSES, UPLOADS, WORKFLOWS
from dispatcher.ledger.nodes import advance, library
from dispatcher.ledger.nodes.inputs import INPUT, write
from dispatcher.ledger.rows import NodeRecord, RunRecord, WorkflowRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import LARGEST_BYTES

MOST_CHUNK_NODES = 1_000
MOST_FINGERPRINT = 100


def start(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Store a chunk of a workflow; with the last, accept the workflow; only return the state of one accepted earlier.

    A workflow was accepted before if its id or its unexpired idempotency key is known.

    Raises:
        InvalidTask: when a field is wrong or a chunk is missing; nothing of the chunk is stored.
        InvalidWorkflow: when the nodes are invalid; nothing of the chunk is stored.
    """
    workflow, key = text(body, "workflow"), str(body.get("key") or "")
    known = idempotency.known(unit.tr, key, fingerprint(body), now_ms=unit.now_ms) if key else None
    if known is not None and known != workflow:
        return {"workflow": known, "state": _state(unit, known), "new": False}
    if unit.run(workflow) is not None:
        unit.effects.unshown.append(workflow)  # RQ was not told of it if the first commit was in doubt
        return {"workflow": workflow, "state": _state(unit, workflow), "new": True}
    chunk, chunks = number(body, "chunk", 1), number(body, "chunks", 1)
    done, begun_ms, nodes = _upload(unit, workflow)
    if chunk > done + 1:
        fix = "send the workflow again from the first chunk"
        raise InvalidTask("A chunk of the workflow is missing", workflow=workflow, expected=done + 1, fix=fix)
    head = read_head(unit, body) if chunk == 1 > done else unit.workflow(workflow)
    assert head is not None
    added = read_nodes(unit, workflow, body.get("nodes")) if chunk > done else []
    children = library.read(body.get("workflows")) if chunk == 1 > done else {}
    library.check_names(unit, workflow, (node for node, _ in added), children)
    nodes += len(added)
    _check_count(workflow, nodes, head.count, last=chunk >= chunks)
    if chunk > done:
        if chunk == 1:
            _write_head(unit, workflow, head, body.get("input"))
            if children:
                library.put(unit, workflow, children)
        _write_nodes(unit, workflow, added)
        unit.tr.set(UPLOADS.pack((workflow,)), versions.UPLOAD.pack((chunk, begun_ms, nodes)))
    if chunk < chunks:
        return {"workflow": workflow, "state": "uploading", "chunk": chunk}
    if key:
        idempotency.claim(unit.tr, key, workflow, now_ms=unit.now_ms, fingerprint=fingerprint(body))
    return _accept(unit, workflow, head, [node for node, _ in added], trace=body.get("trace") or {})


def start_known(
    unit: UnitOfWork,
    workflow: str,
    head: WorkflowRecord,
    body: bytes,
    documents: Mapping[str, Any],
    *,
    trace: dict[str, Any] | None = None,
) -> RunRecord:
    """Store and accept a workflow whose nodes were checked earlier, with its input; return its progress record."""
    pack = versions.NODE_DOCUMENT.pack
    nodes = [(known_node(name, document), pack(document)) for name, document in documents.items()]
    write(unit, NodeKey(workflow, ""), INPUT, body, first=True)
    _write_nodes(unit, workflow, nodes)
    _accept(unit, workflow, head, [node for node, _ in nodes], trace=trace or {})
    run = unit.run(workflow)
    assert run is not None
    return run


def text(body: Mapping[str, Any], name: str, default: str | None = None, *, longest: int | None = None) -> str:
    """Return a text field of a request's body, of at most `longest` bytes; the default, if any, when it is empty.

    Raises:
        InvalidTask: when the field is no text or too long, or is missing or empty and has no default.
    """
    value = body.get(name)
    if not value and default is not None:
        return default
    if not isinstance(value, str) or not value:
        raise InvalidTask("A field of the request is missing or no text", field=name)
    if longest is not None and not is_name(value, longest):
        raise InvalidTask("A field of the request is too long", field=name, longest=longest)
    return value


def names(body: Mapping[str, Any], field: str, *, least: int, most: int, longest: int) -> list[str]:
    """Return a field of a request's body that lists `least` to `most` names of at most `longest` bytes, each once.

    Raises:
        InvalidTask: when the field is no such list.
    """
    found = body.get(field) or []
    if not isinstance(found, list) or not least <= len(found) <= most or not all(is_name(n, longest) for n in found):
        fix = f"name {least} to {most}, each of 1 to {longest} bytes"
        raise InvalidTask("A field of the request is no list of names", field=field, fix=fix)
    return list(dict.fromkeys(found))


def document(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return a field of a request's body that is a JSON object; an empty one when it is missing.

    Raises:
        InvalidTask: when the field is no object.
    """
    value = body.get(field)
    if value is not None and not isinstance(value, dict):
        raise InvalidTask("A field of the request is no object", field=field)
    return value or {}


def is_name(value: object, longest: int) -> bool:
    """Tell whether a value is a text of 1 to `longest` bytes."""
    return isinstance(value, str) and 0 < len(value.encode(errors="surrogatepass")) <= longest


def identity(body: Mapping[str, Any]) -> str:
    """Return the id that a client chose for its new workflow, after checking that it is a UUID.

    Raises:
        InvalidTask: when the id is no UUID in its usual form.
    """
    workflow = text(body, "workflow")
    if not is_uuid(workflow) or workflow != str(UUID(workflow)):
        fix = "give a UUIDv7 in lower case with hyphens: workflows are listed in the order of their ids"
        raise InvalidTask("The id of a workflow is a UUID", field="workflow", given=workflow[:80], fix=fix)
    return workflow


def fingerprint(body: Mapping[str, Any]) -> str:
    """Return the fingerprint that a request gives beside its idempotency key; empty when it gives none.

    Raises:
        InvalidTask: when it is no text of at most 100 characters.
    """
    value = body.get("fingerprint") or ""
    if not isinstance(value, str) or len(value) > MOST_FINGERPRINT:
        raise InvalidTask("A fingerprint is a short text", field="fingerprint", most=MOST_FINGERPRINT)
    return value


def number(body: Mapping[str, Any], name: str, default: int) -> int:
    """Return a field of a request's body that must be a whole number of at least 1, or the default when it is missing.

    With a default below 1 the field is required.

    Raises:
        InvalidTask: when the field is no such number.
    """
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidTask("A field of the request is no number from 1", field=name)
    return value


def _state(unit: UnitOfWork, workflow: str) -> str:
    run = unit.run(workflow)
    return run.state.value if run is not None else WorkflowState.ACCEPTED.value


def _upload(unit: UnitOfWork, workflow: str) -> tuple[int, int, int]:
    """Return the stored state of an unfinished submission: counts of chunks and nodes, and the begin time."""
    row = unit.tr.get(UPLOADS.pack((workflow,)))
    if row is None:
        return 0, unit.now_ms, 0
    chunks, begun_ms, nodes = versions.UPLOAD.unpack(row)
    return chunks, begun_ms, nodes


def read_head(unit: UnitOfWork, body: Mapping[str, Any]) -> WorkflowRecord:
    """Return the record of a workflow's name, labels and other unchanging fields, from its submission's first chunk.

    Raises:
        InputError: when a field is wrong or there are too many nodes.
    """
    name, count = check_name("workflow", text(body, "name")), number(body, "count", 1)
    if count > MAX_WORKFLOW_NODES:
        raise InvalidWorkflow("A workflow has too many nodes", count=count, most=MAX_WORKFLOW_NODES)
    description = fields.text(body.get("description") or "")
    labels = fields.labels(body.get("labels") or {})
    keep_ms = None if body.get("retention") is None else fields.duration_ms(body["retention"])
    key = str(body.get("key") or "")
    return WorkflowRecord(unit.shard, name, description, key, count, unit.now_ms, labels, keep_ms)


def _check_count(workflow: str, nodes: int, count: int, *, last: bool) -> None:
    if nodes > count:
        raise InvalidWorkflow("The workflow has more nodes than it said", workflow=workflow, given=nodes, count=count)
    if last and nodes != count:
        raise InvalidWorkflow("Nodes of the workflow are missing", workflow=workflow, given=nodes, count=count)


def _write_head(unit: UnitOfWork, workflow: str, head: WorkflowRecord, value: Any) -> None:
    write(unit, NodeKey(workflow, ""), INPUT, dumps(value))  # may be refused, and then nothing is written yet
    unit.tr.set(WORKFLOWS.pack((workflow,)), head.pack())


def read_nodes(unit: UnitOfWork, workflow: str, documents: object) -> list[tuple[Node, bytes]]:
    """Parse the nodes in one chunk of a submission, and return each node with its encoded definition to store.

    Raises:
        InvalidWorkflow: when the nodes are invalid or do not fit the stored ones.
        ValueBeyondBound: when a definition is larger than one value may be.
    """
    from coditect.workflow.documents.reader import read_node  # noqa: PLC0415 - 5 MB: pydantic

    if not isinstance(documents, dict) or not documents or len(documents) > MOST_CHUNK_NODES:
        raise InvalidWorkflow("A chunk is an object of nodes", most_nodes=MOST_CHUNK_NODES)
    nodes = [read_node(str(name), document) for name, document in documents.items()]
    problems = check_expressions(Definition(workflow, tuple(nodes)))
    if problems:
        raise InvalidWorkflow.of(problems, workflow=workflow)
    stored, seen = _stored(unit, workflow, nodes), set[str]()
    for node in nodes:
        _check_place(workflow, node, stored, seen)
        seen.add(node.name)
    return [(node, _definition(node)) for node in nodes]


def _stored(unit: UnitOfWork, workflow: str, nodes: Sequence[Node]) -> set[str]:
    """Return the names of the given nodes and of their predecessors that the store already has.

    The rows that are read are never large; a conflict would show in the upload's own row.
    """
    names = list(dict.fromkeys(name for node in nodes for name in (node.name, *(edge.node for edge in node.after))))
    rows = unit.tr.snapshot.get_many([STATUSES.pack((workflow, name)) for name in names])
    return {name for name, row in zip(names, rows, strict=True) if row is not None}


def _check_place(workflow: str, node: Node, stored: Set[str], seen: Set[str]) -> None:
    """Check that a node's name is new, and that its predecessors are stored or come before it in the same chunk."""
    if node.name in stored:
        raise InvalidWorkflow("Two nodes have one name", workflow=workflow, node=node.name)
    if problems := tuple(edge_problems(node)):
        raise InvalidWorkflow.of(problems, workflow=workflow)
    for edge in node.after:
        if edge.node not in seen and edge.node not in stored:
            fix = "send the nodes in topological order"
            raise InvalidWorkflow("There is no such node before it", node=node.name, after=edge.node, fix=fix)


def _definition(node: Node) -> bytes:
    definition = versions.NODE_DOCUMENT.pack(node_document(node))
    if len(definition) > LARGEST_BYTES:
        fix = "put a reference into the input in place of what is large: a URL, a path"
        raise ValueBeyondBound(
            "A node is too large", node=node.name, bytes=len(definition), limit=LARGEST_BYTES, fix=fix
        )
    return definition


def _write_nodes(unit: UnitOfWork, workflow: str, nodes: list[tuple[Node, bytes]]) -> None:
    for node, definition in nodes:
        node_key = NodeKey(workflow, node.name)
        unit.define(node_key, definition)
        unit.write_node(node_key, NodeRecord(TaskState.BLOCKED, Tally.of(node)))
        for before, policy in [(edge.node, edge.on_failure) for edge in node.after] or [(advance.ROOT, OnFailure.FAIL)]:
            unit.tr.set(EDGES.pack((workflow, before, node.name)), policy.value.encode())


def _accept(
    unit: UnitOfWork, workflow: str, head: WorkflowRecord, added: Sequence[Node], *, trace: dict[str, Any]
) -> dict[str, Any]:
    """Accept a submitted workflow: create its progress record, begin its first nodes, and have its nodes sent to RQ."""
    unit.tr.clear(UPLOADS.pack((workflow,)))
    unit.tr.set(LIVE.pack((unit.shard, workflow)), b"")
    unit.tr.set(WORKFLOWS.pack((workflow,)), replace(head, accepted_ms=unit.now_ms).pack())
    for label in head.labels.items():
        unit.tr.set(LABELED.pack((*label, workflow)), b"")
    run = unit.begin_run(workflow)
    run.state = WorkflowState.RUNNING
    if not trace and unit.policy.traced:  # a schedule or a trigger starts it: each of its tasks is a trace of its own
        trace = {"baggage": with_members(None, {WORKFLOW_ID: workflow, WORKFLOW_NAME: head.name})}
    run.open, run.trace = head.count, trace
    run.counts = {TaskState.BLOCKED.value: head.count}
    unit.effects.accepted.append(workflow)
    if len(added) < head.count:
        unit.effects.unshown.append(workflow)
    else:
        for node in added:
            unit.show_new(NodeKey(workflow, node.name), node)
    unit.effects.say("workflow.accepted", workflow, name=head.name)
    advance.begin(unit, workflow)
    return {"workflow": workflow, "state": WorkflowState.ACCEPTED.value, "new": True}
