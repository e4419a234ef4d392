"""The query that lists workflows page by page, from one index: of a label, of a state, or of all workflows.

==================  ======================================================  =======================================
asked for           looks through                                           of which it shows
==================  ======================================================  =======================================
labels              the workflows that have the first of them               those that have the rest, state and name
a state             the workflows of the state                              those of the name
neither             all workflows                                           those of the name
==================  ======================================================  =======================================

The time narrows each of them, since the ids of workflows begin with it. A page looks through at most `MOST` workflows,
and through no more than it shows where the index alone decides.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from coditect.workflow import fields
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.keyspace import INDEXED, LABELED, RUNS, STATES, WORKFLOWS
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.ledger.workflows.queries import MOST, PAGE, Body, overview
from dispatcher.ledger.workflows.submit import number
from dispatcher.store.keys import Space
from dispatcher.store.transaction import KeyRange, Reads


def list_workflows(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of workflows, the latest first; a page may have few workflows although more pages follow.

    Raises:
        InputError: when a label is wrong.
    """
    limit, after, name = min(number(body, "limit", PAGE), MOST), str(body.get("after") or ""), body.get("name")
    state = WorkflowState(body["state"]) if body.get("state") else None
    labels = fields.labels(body.get("labels") or {})
    space, decides = _index(tr, state, labels)
    most = limit if decides and not name else MOST
    begin, end = _between(space, body)
    rows = tr.get_range(begin, min(end, space.pack((after,))) if after else end, limit=most, reverse=True)
    looked = [str(space.unpack(key)[0]) for key, _ in rows]
    runs = tr.get_many([RUNS.pack((workflow,)) for workflow in looked])
    known = [(one, RunRecord.unpack(row)) for one, row in zip(looked, runs, strict=True) if row is not None]
    wanted = [(workflow, run) for workflow, run in known if state in (None, run.state)]
    heads = tr.get_many([WORKFLOWS.pack((workflow,)) for workflow, _ in wanted])
    told = [
        overview(workflow, head, run)
        for (workflow, run), row in zip(wanted, heads, strict=True)
        if row is not None
        and (head := WorkflowRecord.unpack(row)).name == (name or head.name)
        and labels.items() <= head.labels.items()
    ]
    if len(told) > limit:
        return {"workflows": told[:limit], "next": told[limit - 1]["workflow"]}
    return {"workflows": told, "next": looked[-1] if len(rows) == most else None}


def _index(tr: Reads, state: WorkflowState | None, labels: dict[str, str]) -> tuple[Space, bool]:
    """Return the index of workflows to search, and whether all workflows in it have the wanted labels and state."""
    if labels:
        label, value = min(labels.items())
        return LABELED[label][value], len(labels) == 1 and state is None
    if state is None:
        return RUNS, True
    if tr.get(INDEXED.pack()) == b"":
        return STATES[state.value], True
    return RUNS, False  # the index of a store that was made before it is being built


def _between(space: Space, body: Body) -> KeyRange:
    """Return the part of an index with workflow ids (UUIDv7) whose timestamps are from `since` to before `until`."""
    begin, end = space.range()
    if body.get("since") is not None:
        begin = space.pack((str(UUID(int=number(body, "since", 1) << 80)),))
    if body.get("until") is not None:
        end = space.pack((str(UUID(int=number(body, "until", 1) << 80)),))
    return begin, end
