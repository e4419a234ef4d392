"""The request for the autonomy report: how much finished work needed no person, and what needed one, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coditect.wire.control import Verb
from dispatcher.ledger.audit import autonomy, trail
from dispatcher.ledger.audit.autonomy import BY_HAND, COMPLETED, FAILED, TASK, WORKFLOW
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.nodes.approvals.decisions import ASKED, DENIED, GRANTED
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import number
from dispatcher.store.transaction import Reads

MOST_ENTRIES = 5_000
"""The most entries of the audit trail that one report reads, the latest of its period."""


def report(tr: Reads, body: Body) -> dict[str, Any]:
    """Return how many workflows, and tasks by capability, finished from `since` to `until`, and what needed people."""
    since_ms, until_ms = number(body, "since", 0), number(body, "until", 0)
    counts = autonomy.read(tr, since_ms=since_ms, until_ms=until_ms)
    tasks = {name: _told(found) for (kind, name), found in sorted(counts.items()) if kind == TASK}
    needed, whole = _needed(tr, since_ms, until_ms)
    workflows = _told(counts.get((WORKFLOW, ""), Counter()))
    return {"workflows": workflows, "capabilities": tasks, "needed": needed, "needed_is_whole": whole}


def _told(found: Counter[str]) -> dict[str, int]:
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
            {
                "decision": entry.decision,
                "capability": entry.capability,
                "rule": entry.rule,
                "count": 0,
                "workflow": workflow,
                "node": node,
                "by": entry.by,
                "why": entry.why,
                "at_ms": at_ms,
            },
        )
        group["count"] += 1
    return sorted(groups.values(), key=lambda one: -one["count"]), len(rows) < MOST_ENTRIES


VERBS: Mapping[str, Query | ShardChange] = MappingProxyType({Verb.AUTONOMY: Query(report)})
