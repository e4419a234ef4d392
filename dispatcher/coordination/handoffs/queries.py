"""The read-only requests about handoffs: show one, show the last one by which a task was taken over, or list them."""

from __future__ import annotations

from typing import Any

from coditect.errors import InvalidTask
from dispatcher.coordination.handoffs import rows
from dispatcher.coordination.handoffs.rows import HandoffRecord
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import HANDOFFS, STATUSES
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.queries import Body, rows_within
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.store.transaction import Reads

MOST_AT_ONCE = 500


def show(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a handoff by its id, or a task's last accepted handoff since the task began; `handoff` is null if none.

    Raises:
        NotFound: when the handoff is unknown, or its workflow is not kept any more.
    """
    if not body.get("task"):
        return rows.read(tr, text(body, "handoff")).as_json()
    node_key = _task(text(body, "task"))
    found = tr.get(STATUSES.pack(node_key))
    if found is None or not NodeRecord.unpack(found).handoffs:  # a redrive begins again
        return {"handoff": None}
    for key, row in tr.get_range(*HANDOFFS.range(node_key), reverse=True):
        handoff = rows.unpack(node_key, int(HANDOFFS.unpack(key)[2]), row)
        if handoff.state == rows.ACCEPTED:
            return handoff.as_json()
    return {"handoff": None}


def list_handoffs(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the handoffs without their contexts, ordered by their workflows' ids, so as a rule by time.

    Of a `task`, a `workflow`, or an `agent` that hands off, is asked or accepted; or only open ones.
    """
    within = () if not body.get("workflow") else (text(body, "workflow"),)
    begin, end = HANDOFFS.range(_task(text(body, "task")) if body.get("task") else within)
    if body.get("after"):
        node_key, place = rows.node_of(text(body, "after"))
        begin = max(begin, HANDOFFS.pack((*node_key, place)) + b"\0")
    limit, agent = min(number(body, "limit", MOST_AT_ONCE), MOST_AT_ONCE), body.get("agent") and text(body, "agent")
    found, more = rows_within(tr, begin, end, limit=limit)
    handoffs = [_read(key, row) for key, row in found]
    told = [one.as_json(whole=False) for one in handoffs if _fits(one, agent, body)]
    return {"handoffs": told, "next": handoffs[-1].id if more else None}


def _read(key: bytes, row: bytes) -> HandoffRecord:
    workflow, node, place = HANDOFFS.unpack(key)
    return rows.unpack(NodeKey(workflow, node), int(place), row)


def _task(task: str) -> NodeKey:
    workflow, _, node = task.partition(":")
    if not (workflow and node):
        fix = "name a task of a workflow, such as 01890a5d-ac96-774b-bcce-b302099a8057:review"
        raise InvalidTask("This is no id of a task that the control plane keeps", task=task[:300], fix=fix)
    return NodeKey(workflow, node)


def _fits(handoff: HandoffRecord, agent: str | None, body: Body) -> bool:
    named = {handoff.owner, handoff.by, *(one[0] for one in handoff.asked)}
    return (not agent or agent in named) and (handoff.is_open or not body.get("open"))
