"""The gates: approvals that require artifacts, and are rejected without a question when one is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.model.result import Failure
from coditect.wire.json import dumps
from coditect.workflow.approvals.policy import MAX_ARTIFACT_CHARACTERS, missing
from coditect.workflow.definition import Approval
from dispatcher.ledger.audit import trail
from dispatcher.ledger.audit.trail import AuditEntry
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.approvals import decisions, judging
from dispatcher.ledger.nodes.approvals.decisions import GATE, REFUSED, DecisionRecord
from dispatcher.ledger.unit_of_work import UnitOfWork

MISSING = "artifact_missing"
"""The reason of a gate that was rejected because an artifact was missing."""
REFUSALS = frozenset({judging.REFUSAL, MISSING})
"""The reasons by which a node ends as rejected without a question to a person."""


def check(unit: UnitOfWork, node_key: NodeKey, gate: Approval, found: Mapping[str, Any]) -> DecisionRecord | None:
    """Check that an approval's required artifacts exist, and audit the result; return the refusal if one is missing.

    An approval without artifacts passes, and leaves no entry.
    """
    if not gate.artifacts:
        return None
    facts = {"artifacts": {name: _shown(value) for name, value in found.items()}}
    lacks = missing(found)
    if not lacks:
        entry = AuditEntry("checked", GATE, automatic=True, why=f"all of {', '.join(found)} are there", facts=facts)
        trail.append(unit, node_key, entry)
        return None
    why = f"the gate lacks {', '.join(lacks)}"
    refused = DecisionRecord(REFUSED, unit.now_ms, GATE, why, question=gate.question, facts=facts)
    decisions.record(unit, node_key, refused)
    return refused


def refusal(decision: DecisionRecord) -> Failure:
    """Return the failure of an approval node that a missing artifact or the policy refused, with no person asked."""
    if decision.by != GATE:
        return judging.refusal(decision)
    fix = "look at the results before it: coditect approval get"
    return Failure(MISSING, "NotApproved", f"Nobody was asked: {decision.why}", fix=fix)


def _shown(value: object) -> str:
    return dumps(value).decode()[:MAX_ARTIFACT_CHARACTERS]
