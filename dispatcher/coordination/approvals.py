"""The requests that read decisions about nodes, the audit trail of all decisions, and the autonomy report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from coditect.errors import InvalidTask, NotFound
from coditect.wire.control import Verb
from dispatcher.ledger.audit import autonomy, trail
from dispatcher.ledger.audit.autonomy import BY_HAND, COMPLETED, FAILED, TASK, WORKFLOW
from dispatcher.ledger.audit.trail import MAX_AUDIT_ENTRIES, AuditEntry
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.nodes.approvals import decisions, questions
from dispatcher.ledger.nodes.approvals.decisions import ASKED, DENIED, GRANTED
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.store.transaction import Reads

END_MS = 2**62
MOST_PAGES = 4
"""How many pages of the trail one request reads at most to fill a page with what its conditions want."""
_CONDITIONS = ("decision", "by", "capability", "rule", "risk")


def show(tr: Reads, body: Body) -> dict[str, Any]:
    """Return the last decision about a node, its subject, and the node's entries in the audit trail, earliest first.

    Raises:
        NotFound: when nothing was ever asked or decided about the node.
    """
    node_key = NodeKey(text(body, "workflow"), text(body, "node"))
    found = decisions.read(tr, node_key)
    history = [_entry(key, entry) for key, entry in trail.of_workflow(tr, *node_key)]
    if found is None and not history:
        fix = "coditect approval list shows what waits, and coditect approval audit what was decided"
        raise NotFound("Nothing was asked or decided about this node", **node_key._asdict(), fix=fix)
    decision = {} if found is None else {name: getattr(found, name) for name in decisions.DecisionRecord.__slots__}
    about = questions.subject(tr, node_key, max_bytes=questions.SHOWN_BYTES, max_results=questions.SHOWN_RESULTS)
    return {**node_key._asdict(), "decision": decision, "history": history, "about": about}


def list_audit(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the audit trail, the latest first; of one workflow, its latest entries, the earliest first."""
    wanted = {name: text(body, name) for name in _CONDITIONS if body.get(name)}
    automatic = body.get("automatic")
    if body.get("workflow"):
        node = text(body, "node", "")
        rows = trail.of_workflow(tr, text(body, "workflow"), node)
        return {"entries": [_entry(*row) for row in rows if _fits(row[1], wanted, automatic)], "next": None}
    limit = min(number(body, "limit", 100), MAX_AUDIT_ENTRIES)
    since_ms = number(body, "since", 0) if body.get("since") is not None else 0
    until_ms = number(body, "until", 0) if body.get("until") is not None else END_MS
    after, found = _cursor(body.get("after")), list[dict[str, Any]]()
    for _ in range(MOST_PAGES):
        rows, after = trail.page(tr, since_ms=since_ms, until_ms=until_ms, after=after, limit=limit)
        for key, entry in rows:
            if _fits(entry, wanted, automatic):
                found.append(_entry(key, entry))
                if len(found) == limit:
                    return {"entries": found, "next": list(key)}
        if after is None:
            break
    return {"entries": found, "next": None if after is None else list(after)}


def _cursor(after: object) -> tuple[Any, ...] | None:
    if after is None:
        return None
    match after:
        case [int(at_ms), str(workflow), int(count), str(node)]:
            return at_ms, workflow, count, node
        case _:
            raise InvalidTask("This is no cursor of the audit trail", field="after")


def _fits(entry: AuditEntry, wanted: Mapping[str, str], automatic: object) -> bool:
    if isinstance(automatic, bool) and entry.automatic is not automatic:
        return False
    return all(getattr(entry, name) == value for name, value in wanted.items())


def _entry(key: tuple[Any, ...], entry: AuditEntry) -> dict[str, Any]:
    at_ms, workflow, _, node = key
    fields = {name: getattr(entry, name) for name in AuditEntry.__slots__}
    return {"at_ms": at_ms, "workflow": workflow, "node": node, **fields, "facts": dict(entry.facts)}


MOST_ENTRIES = 5_000
"""The most entries of the audit trail that one report reads, the latest of its period."""


def report(tr: Reads, body: Body) -> dict[str, Any]:
    """Return how many workflows, and tasks by capability, finished from `since` to `until`, and what needed people."""
    since_ms, until_ms = number(body, "since", 0), number(body, "until", 0)
    counts = autonomy.read(tr, since_ms=since_ms, until_ms=until_ms)
    tasks = {name: _finished(found) for (kind, name), found in sorted(counts.items()) if kind == TASK}
    needed, whole = _needed(tr, since_ms, until_ms)
    workflows = _finished(counts.get((WORKFLOW, ""), Counter()))
    return {"workflows": workflows, "capabilities": tasks, "needed": needed, "needed_is_whole": whole}


def _finished(found: Counter[str]) -> dict[str, int]:
    by_hand = found[COMPLETED + BY_HAND] + found[FAILED + BY_HAND]
    completed = found[COMPLETED] + found[COMPLETED + BY_HAND]
    return {"finished": sum(found.values()), "completed": completed, "by_hand": by_hand}


def _needed(tr: Reads, since_ms: int, until_ms: int) -> tuple[list[dict[str, Any]], bool]:
    """Group what persons decided or were asked, with each group's count and latest, largest first; tell if that is all.

    A question that a person answered is counted with its answer, and not as a question too.
    """
    rows, _ = trail.page(tr, since_ms=since_ms, until_ms=until_ms, after=None, limit=MOST_ENTRIES)
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    answered: set[tuple[str, str]] = set()  # the latest entry comes first: an answer before its question
    for (at_ms, workflow, _, node), entry in rows:
        if entry.automatic and entry.decision != ASKED:
            continue
        if entry.decision in (GRANTED, DENIED):
            answered.add((workflow, node))
        elif entry.decision == ASKED and (workflow, node) in answered:
            answered.discard((workflow, node))
            continue
        group = groups.setdefault(
            (entry.decision, entry.capability, entry.rule),
            {name: getattr(entry, name) for name in ("decision", "capability", "rule", "by", "why")}
            | {"count": 0, "workflow": workflow, "node": node, "at_ms": at_ms},
        )
        group["count"] += 1
    return sorted(groups.values(), key=lambda one: -one["count"]), len(rows) < MOST_ENTRIES


APPROVAL_VERBS: Mapping[str, Query | ShardChange] = {Verb.APPROVAL_SHOW: Query(show)}
AUDIT_VERBS: Mapping[str, Query | ShardChange] = {Verb.AUDIT_LIST: Query(list_audit)}
AUTONOMY_VERBS: Mapping[str, Query | ShardChange] = {Verb.AUTONOMY: Query(report)}
