"""The read-only queries of workflows and nodes; each is one read transaction, and long answers come in pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from coditect.errors import NotFound
from coditect.wire.json import dumps, loads
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.documents.document import known_node
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import definitions, values, versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import (
    APPROVALS,
    ATTEMPTS,
    DEAD,
    DECISIONS,
    EDGES,
    NODES,
    RUNS,
    STATUSES,
    WORKFLOWS,
)
from dispatcher.ledger.nodes import children, inputs
from dispatcher.ledger.nodes.approvals import decisions, questions
from dispatcher.ledger.nodes.inputs import FAILURE, INPUT, RESULT
from dispatcher.ledger.rows import NodeRecord, RunRecord, WorkflowRecord, unpack_attempt
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.store.keys import Element, Space
from dispatcher.store.transaction import KeyValue, Reads

DEFAULT_PAGE = 200
MAX_PAGE = 1_000
_AHEAD = 100
"""The number of nodes whose attempts one read returns."""
PAGE_BYTES = 256 * 1024
"""The largest size in bytes of a page of values; a larger value is a page of its own."""
FIRST_LARGE, MOST_LARGE = 8, 32
"""The number of rows of up to 100 kB that a page reads at first, and at most at once."""
MOST_DEFINITION_BYTES = 4 * 1024 * 1024
"""The largest size in bytes of the definitions that a page of nodes reads, since each may be a MiB."""
_SAYS_ITS_ATTEMPT = frozenset(TaskState) - {TaskState.BLOCKED, TaskState.READY, TaskState.RETRY_WAIT}
_KINDS = ("task", "map", "approval", "wait", "wait_until", "await_signal", "workflow")
_TOLD_OTHERWISE = frozenset({"after", "input"})
"""The fields of a definition that answers omit: `after`, which they show as edges, and the large `input`."""

Body = Mapping[str, Any]


def rows_of(tr: Reads, workflow: str) -> tuple[WorkflowRecord, RunRecord]:
    """Return the unchanging record and the progress record of the workflow that a query names.

    Raises:
        NotFound: when there is no such workflow.
    """
    head, run = tr.get(WORKFLOWS.pack((workflow,))), tr.get(RUNS.pack((workflow,)))
    if head is None or run is None:
        raise NotFound("There is no such workflow", workflow=workflow, fix="coditect workflow list")
    return WorkflowRecord.unpack(head), RunRecord.unpack(run)


def _row_of(tr: Reads, node_key: NodeKey) -> NodeRecord:
    row = tr.get(STATUSES.pack(node_key))
    if row is None:
        raise NotFound("The workflow has no such node", workflow=node_key.workflow, node=node_key.node)
    return NodeRecord.unpack(row)


def overview(workflow: str, head: WorkflowRecord, run: RunRecord) -> dict[str, Any]:
    """Return a workflow's name, state, node counts, times and labels as JSON values, to answer the query `get`."""
    return {
        "workflow": workflow,
        "name": head.name,
        "description": head.description,
        "state": run.state.value,
        "canceling": run.canceling,
        "ended_as": None if run.ended is None else run.ended.value,
        "shard": head.shard,
        "counts": {state: count for state, count in run.counts.items() if count},
        "total": sum(run.counts.values()),
        "accepted_at": head.accepted_ms,
        "finished_at": run.finished_ms,
        "reason": run.reason,
        "key": head.key,
        "labels": dict(head.labels),
        "parent": None if head.parent is None else {"workflow": head.parent.workflow, "node": head.parent.node},
    }


def nodes(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of a workflow's nodes in the order of their names, each with definition and progress."""
    workflow = text(body, "workflow")
    rows_of(tr, workflow)
    rows, following = page_of(tr, STATUSES, (workflow,), body)
    found = [(NodeKey(workflow, STATUSES.unpack(key)[1]), NodeRecord.unpack(row)) for key, row in rows]
    shown = _nodes(tr, found)
    return {"nodes": shown, "next": following if len(shown) == len(found) else shown[-1]["name"]}


def _nodes(tr: Reads, found: Sequence[tuple[NodeKey, NodeRecord]]) -> list[dict[str, Any]]:
    """Return definition and progress of the given nodes, in order, as many as fit one answer with their definitions."""
    bases = [node_key.defined for node_key, _ in found]
    defined = tuple(dict.fromkeys(bases))
    reading = zip(defined, definitions.find_all(tr, defined), strict=True)
    documents: dict[NodeKey, dict[str, Any]] = {}
    shown: list[dict[str, Any]] = []
    size_bytes = 0
    messages, below = _messages(tr, found), children.started(tr, [node_key for node_key, row in found if _runs(row)])
    for (node_key, row), base, message in zip(found, bases, messages, strict=True):
        if base not in documents:
            _, definition = next(reading)
            size_bytes += len(definition or b"")
            if shown and size_bytes > MOST_DEFINITION_BYTES:
                break
            documents[base] = versions.NODE_DOCUMENT.unpack(definition or b"{}")
        shown.append(_node(node_key, documents[base], row, message))
        if below.get(node_key):
            shown[-1]["children"] = below[node_key]
    return shown


def _runs(row: NodeRecord) -> bool:
    """Tell whether a node may have run child workflows: it has a fence, although no task of it was ever published."""
    return row.fence > 0 and not row.publication


def _node(node_key: NodeKey, document: Mapping[str, Any], row: NodeRecord, message: str) -> dict[str, Any]:
    name = node_key.node
    kind = next((kind for kind in _KINDS if kind in document), "task")
    derived = node_key.is_derived
    edges = [] if derived else document.get("after", [])
    return {
        "name": name,
        "kind": "compensation" if node_key.is_compensation else "task" if derived else kind,
        "capability": row.capability or _capability(node_key, document),
        "question": document.get("approval"),
        "priority": document.get("priority", "p1"),
        "after": [edge if isinstance(edge, str) else edge["node"] for edge in edges],
        "on_failure": {edge["node"]: edge["on_failure"] for edge in edges if not isinstance(edge, str)},
        "definition": {} if derived else {name: document[name] for name in document if name not in _TOLD_OTHERWISE},
        "state": row.state.value,
        "attempt": row.attempt,
        "fence": row.fence,
        "agent": row.agent or None,
        "ready_at": row.ready_ms,
        "published_at": row.published_ms,
        "started_at": row.started_ms,
        "finished_at": row.finished_ms,
        "reason": row.reason,
        "message": message,
    }


def _capability(node_key: NodeKey, document: Mapping[str, Any]) -> Any:
    if node_key.is_compensation:
        return document.get("compensate")
    return document.get("task") or document.get("map")


def _messages(tr: Reads, found: Iterable[tuple[NodeKey, NodeRecord]]) -> Iterator[str]:
    """Yield, for each given node, the message of its failure; empty for a node that has not failed."""
    nodes = list(found)
    failed = [node_key for node_key, row in nodes if _has_failed(row)]
    bodies = values.read_all(tr, [values.ValueKey(*node_key, FAILURE) for node_key in failed])
    for _, row in nodes:
        body = next(bodies) if _has_failed(row) else None
        yield "" if body is None else str(loads(body).get("message", ""))


def _has_failed(row: NodeRecord) -> bool:
    return row.state.terminal and row.state is not TaskState.COMPLETED


def attempts(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the attempts of one node or, node by node, of all nodes of a workflow."""
    workflow = text(body, "workflow")
    rows_of(tr, workflow)
    if body.get("node"):
        node = text(body, "node")
        node_key = NodeKey(workflow, node)
        return {"attempts": _attempts(tr, [(node_key, _row_of(tr, node_key))])[0], "next": None}
    rows, following = page_of(tr, STATUSES, (workflow,), body)
    found = [(NodeKey(workflow, STATUSES.unpack(key)[1]), NodeRecord.unpack(row)) for key, row in rows]
    shown: list[dict[str, Any]] = []
    for first in range(0, len(found), _AHEAD):
        page = found[first : first + _AHEAD]
        for (node_key, _), attempts_of_one in zip(page, _attempts(tr, page), strict=True):
            shown += attempts_of_one
            if len(shown) >= MAX_PAGE:  # of few nodes, each with many; the next page may be empty
                return {"attempts": shown, "next": node_key.node}
    return {"attempts": shown, "next": following}


def _attempts(tr: Reads, found: Sequence[tuple[NodeKey, NodeRecord]]) -> list[list[dict[str, Any]]]:
    several = [node_key for node_key, row in found if row.fence > 1]
    before = dict(zip(several, tr.get_ranges([ATTEMPTS.range(node_key) for node_key in several]), strict=True))
    return [
        _attempts_of(node_key.node, row, before.get(node_key, []), message)
        for (node_key, row), message in zip(found, _messages(tr, found), strict=True)
    ]


def _attempts_of(node: str, row: NodeRecord, before: Sequence[KeyValue], message: str) -> list[dict[str, Any]]:
    shown = [asdict(unpack_attempt(node, row)) for _, row in before]
    if not row.fence or row.state not in _SAYS_ITS_ATTEMPT:
        return shown
    return [*(attempt for attempt in shown if attempt["fence"] != row.fence), _last_attempt(node, row, message)]


def _last_attempt(node: str, row: NodeRecord, message: str = "") -> dict[str, Any]:
    times = (row.published_ms, row.started_ms, row.finished_ms)
    head = (node, row.attempt, row.fence, row.publication, row.agent)
    return asdict(AttemptRow(*head, *times, row.state.value, row.reason, message))


def result(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a node's or workflow's state with its result or failure; a workflow's result is that of its last nodes.

    The last nodes are those without dependents: a single one gives its value, several an object by name. Many results
    come in pages, each an object also with one or no result: `next` is the node to ask for as `after` in the next
    query. Only all pages together show whether there is a single last node.
    """
    workflow = text(body, "workflow")
    _, run = rows_of(tr, workflow)
    if body.get("node"):
        node = text(body, "node")
        row = _row_of(tr, NodeKey(workflow, node))
        return {"state": row.state.value, "attempt": _last_attempt(node, row), **_value(tr, NodeKey(workflow, node))}
    if not run.state.terminal:
        return unended(run)
    document = unended(run) | {"state": (run.ended or run.state).value}
    if run.state is WorkflowState.COMPLETED:
        after = str(body.get("after") or "")
        found, following = _last_values(tr, workflow, after)
        alone = len(found) == 1 and not after and following is None
        return document | {"value": next(iter(found.values())) if alone else found, "next": following}
    return document | {"failure": _first_failure(tr, workflow)}


def completed(node: str, row: NodeRecord, value: bytes) -> dict[str, Any]:
    """Return the answer about a node that has completed with a value, as `result` does."""
    return {
        "state": row.state.value, "attempt": _last_attempt(node, row), "value": loads(value), "failure": None,
    }  # fmt: skip


def unended(run: RunRecord) -> dict[str, Any]:
    """Return the state of a workflow that still runs, as `result` does."""
    return {"state": run.state.value, "reason": run.reason, "value": None, "failure": None}


def _value(tr: Reads, node_key: NodeKey) -> dict[str, Any]:
    value = values.get(tr, values.ValueKey(node_key.workflow, node_key.node, RESULT))
    failure = values.get(tr, values.ValueKey(node_key.workflow, node_key.node, FAILURE)) if value is None else None
    return {"value": None if value is None else loads(value), "failure": None if failure is None else loads(failure)}


def _last_values(tr: Reads, workflow: str, after: str) -> tuple[dict[str, Any], str | None]:
    """Return a page of the results of a workflow's nodes without dependents, by name, and the next page's cursor."""
    rows = tr.get_range(*NODES.behind((workflow,), (after,)), limit=MAX_PAGE + 1)
    names = [NODES.unpack(key)[1] for key, _ in rows[:MAX_PAGE]]
    edges = tr.get_ranges([EDGES.range((workflow, name)) for name in names], limit=1)
    last = [name for name, following in zip(names, edges, strict=True) if not following]
    bodies = values.read_all(tr, [values.ValueKey(workflow, name, RESULT) for name in last])
    found: dict[str, Any] = {}
    size_bytes = 0
    for name, value in zip(last, bodies, strict=True):
        body = value or b"null"
        size_bytes += len(body)
        if found and size_bytes > PAGE_BYTES:
            return found, after
        found[name] = loads(body)
        after = name
    after = names[-1] if names else after
    return found, after if len(rows) > MAX_PAGE else None


def node_input(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a node's input, as recorded or defined, or None before it is evaluated, and its workflow's trace."""
    node_key = NodeKey(text(body, "workflow"), text(body, "node"))
    _, run = rows_of(tr, node_key.workflow)
    _row_of(tr, node_key)
    trace = str(run.trace.get("traceparent", ""))
    if (recorded := inputs.body_at(tr, node_key, INPUT)) is not None:
        return {"input": loads(recorded), "evaluated": True, "trace": trace}
    definition = None if node_key.is_derived else definitions.find(tr, node_key)
    node = None if definition is None else known_node(node_key.node, versions.NODE_DOCUMENT.unpack(definition))
    if node is None or inputs.has_expressions(node):
        return {"input": None, "evaluated": False, "trace": trace}
    return {"input": inputs.plain_input(node), "evaluated": True, "trace": trace}


def _first_failure(tr: Reads, workflow: str) -> dict[str, Any] | None:
    """Return the failure of the first node that ended unsuccessfully, not because of a predecessor, or None."""
    failed = [
        (NodeRecord.unpack(row), STATUSES.unpack(key)[1])
        for key, row in tr.get_range(*STATUSES.range((workflow,)))
        if b'"completed"' not in row[:16]
    ]
    own = [
        (row.finished_ms or 0, name)
        for row, name in failed
        if row.reason != "predecessor" and row.state.terminal and row.state is not TaskState.SKIPPED
    ]
    if not own:
        return None
    _, name = min(own)
    failure = _value(tr, NodeKey(workflow, name))["failure"] or {}
    return {"node": name, "reason": next(row.reason for row, failed_name in failed if failed_name == name), **failure}


def approvals(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the approvals that wait for a person's answer, the oldest first, with what each is about."""
    rows, following = page_of(tr, APPROVALS, (), body)
    asked = [(*APPROVALS.unpack(key), question.decode()) for key, question in rows]
    heads = tr.get_many([WORKFLOWS.pack((workflow,)) for _, workflow, _, _ in asked])
    judged = tr.get_many([DECISIONS.pack((workflow, node)) for _, workflow, node, _ in asked])
    shown: list[dict[str, Any]] = []
    size_bytes = 0
    last: tuple[Any, ...] = ()
    for (ms, workflow, node, question), head, row in zip(asked, heads, judged, strict=True):
        if head is not None:
            key, name = NodeKey(workflow, node), WorkflowRecord.unpack(head).name
            about = questions.subject(tr, key, max_bytes=questions.LISTED_BYTES, max_results=questions.LISTED_RESULTS)
            found = decisions.about(row) | key._asdict() | {"name": name, "question": question, "since": ms}
            size_bytes += len(dumps(found | {"about": about}))
            if shown and size_bytes > PAGE_BYTES:
                return {"approvals": shown, "next": list(last)}
            shown.append(found | {"about": about})
        last = (ms, workflow, node)
    return {"approvals": shown, "next": following}


def dead(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the nodes in state `dead`, sorted by workflow and name.

    Such a node's agents died too often, or the ledger could not record how its attempts ended.
    """
    rows, following = page_of(tr, DEAD, (), body)
    node_keys = [NodeKey(*DEAD.unpack(key)) for key, _ in rows]
    rows_of_them = tr.get_many([STATUSES.pack(node_key) for node_key in node_keys])
    runs = tr.get_many([RUNS.pack((node_key.workflow,)) for node_key in node_keys])
    found = [  # but for what is being taken away
        (node_key, NodeRecord.unpack(row))
        for node_key, row, run in zip(node_keys, rows_of_them, runs, strict=True)
        if row is not None and run is not None
    ]
    nodes_of_them = _nodes(tr, found)
    shown = [
        {"workflow": node_key.workflow, **document}
        for (node_key, _), document in zip(found, nodes_of_them, strict=False)
    ]
    if len(shown) < len(found):
        return {"dead": shown, "next": list(found[len(shown) - 1][0])}
    return {"dead": shown, "next": following}


def rows_within(tr: Reads, begin: bytes, end: bytes, *, limit: int) -> tuple[list[KeyValue], bool]:
    """Return the first rows of a range of keys in the store, as many as fit one page, and whether there may be more.

    They are at most `limit`, and end with the one by which they have `PAGE_BYTES` together.
    """
    found: list[KeyValue] = []
    size, wanted, more = 0, FIRST_LARGE, begin < end
    while more and len(found) < limit:
        wanted = min(wanted, limit - len(found))
        rows = tr.get_range(begin, end, limit=wanted)
        for row in rows:
            found.append(row)
            size += len(row[1])
            if size >= PAGE_BYTES:
                return found, True
        more, wanted = len(rows) == wanted, min(2 * wanted, MOST_LARGE)
        begin = rows[-1][0] + b"\0" if rows else end
    return found, more


def page_of(
    tr: Reads, space: Space, prefix: tuple[Element, ...], body: Body, *, max_page: int = MAX_PAGE, large: bool = False
) -> tuple[list[KeyValue], Any]:
    """Return the page of stored rows that a request asks for, and the cursor of the next page; None on the last.

    The rows are those whose tuples extend `prefix`. `limit` in the request is their number, 200 unless it says
    otherwise and at most `max_page`; `after` is the cursor, the elements of the last key behind `prefix`. A page of
    `large` rows ends at `PAGE_BYTES`, too.
    """
    limit, after = min(number(body, "limit", DEFAULT_PAGE), max_page), body.get("after")
    begin, end = space.behind(prefix, tuple(after) if isinstance(after, list) else (after,))
    if large:
        rows, more = rows_within(tr, begin, end, limit=limit)
    else:
        rows = tr.get_range(begin, end, limit=limit + 1)
        more = len(rows) > limit
    if not more:
        return rows, None
    rows = rows[:limit]
    following = list(space.unpack(rows[-1][0])[len(prefix) :])
    return rows, following[0] if len(following) == 1 else following
