"""The last approval decision about a node: what was asked, by which rule, and how it was answered.

A grant is for the input that was judged: a retry of the task needs no other, and a redrive with another input does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from coditect.model.result import Failure
from coditect.workflow.approvals.policy import Judgement
from coditect.workflow.definition import OnTimeout
from dispatcher.ledger import versions
from dispatcher.ledger.audit import trail
from dispatcher.ledger.audit.trail import AuditEntry
from dispatcher.ledger.effects import EndedWait, NodeKey
from dispatcher.ledger.keyspace import DECISIONS
from dispatcher.ledger.nodes.approvals import questions
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads

ASKED, GRANTED, DENIED, REFUSED = "asked", "granted", "denied", "refused"
POLICY, TIMEOUT, LEARNED, GATE = "policy", "timeout", "learned", "gate"
MOST_BEFORE = 20
"""The most nodes before an approval node that learn why it was not approved."""
AUTOMATIC = frozenset({POLICY, TIMEOUT, LEARNED, GATE})
"""The authors of automatic decisions; no person answers under such a name."""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """The row of the last approval decision about a node; a question that is still open counts as one."""

    decision: str
    """`asked`, `granted`, `denied` or `refused`."""
    at_ms: int
    by: str = ""
    why: str = ""
    capability: str = ""
    rule: str = ""
    risk: str = ""
    policy: str = ""
    on_timeout: str = OnTimeout.REJECT.value
    digest: str = ""
    """The SHA-256 of the input that was judged; empty for an approval node."""
    question: str = ""
    due_ms: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Encode the record as its row in the store."""
        fields = [self.decision, self.at_ms, self.by, self.why, self.capability, self.rule, self.risk, self.policy]
        return versions.DECISION.pack([*fields, self.on_timeout, self.digest, self.question, self.due_ms, self.facts])

    @classmethod
    def unpack(cls, row: bytes) -> DecisionRecord:
        """Decode a row of the store to a record."""
        return cls(*versions.DECISION.unpack(row))

    def judged(self, judgement: Judgement, policy: str) -> DecisionRecord:
        """Return a copy of the record with a judgement's rule, risk and reason, and the approval policy's digest."""
        return replace(self, rule=judgement.rule, risk=judgement.risk.value, policy=policy, why=judgement.why)


def read(tr: Reads, node_key: NodeKey) -> DecisionRecord | None:
    """Return the last decision about a node; None when nothing was decided or asked."""
    row = tr.get(DECISIONS.pack(node_key))
    return None if row is None else DecisionRecord.unpack(row)


def about(row: bytes | None) -> dict[str, Any]:
    """Return the fields of a node's decision that a list of open questions shows, from the decision's row."""
    found = DecisionRecord("", 0) if row is None else DecisionRecord.unpack(row)
    names = ("capability", "rule", "risk", "due_ms", "on_timeout")
    return {name: getattr(found, name) for name in names}


def record(unit: UnitOfWork, node_key: NodeKey, decision: DecisionRecord, *, asked_ms: int | None = None) -> None:
    """Store a node's decision, add it to the audit trail, and have it published as an event after the commit.

    `asked_ms` is the instant of the question that is answered, if there was one.
    """
    unit.tr.set(DECISIONS.pack(node_key), decision.pack())
    automatic = decision.decision == ASKED or decision.by in AUTOMATIC
    policy_facts = {
        "rule": decision.rule,
        "risk": decision.risk,
        "policy": decision.policy,
        "capability": decision.capability,
    }
    entry = AuditEntry(decision.decision, decision.by, automatic, decision.why, facts=decision.facts, **policy_facts)
    trail.append(unit, node_key, entry)
    asked: dict[str, Any] = {}
    if decision.decision != ASKED:
        ended = {"decision": decision.decision, "by": decision.by, "rule": decision.rule}
        unit.effects.waits.append(EndedWait(node_key, "approval", asked_ms or unit.now_ms, ended))
    else:
        about = questions.subject(
            unit.tr.snapshot, node_key, max_bytes=questions.LISTED_BYTES, max_results=questions.LISTED_RESULTS
        )
        asked = {"question": decision.question, "due_ms": decision.due_ms, "about": about}
    facts = {name: value for name, value in policy_facts.items() if value}
    unit.effects.say(
        f"approval.{decision.decision}", node_key.workflow, node=node_key.node, by=decision.by, why=decision.why,
        **facts, **asked,
    )  # fmt: skip
    if decision.decision in (DENIED, REFUSED) and decision.by != TIMEOUT:
        _say_failed(unit, node_key, decision)


def _say_failed(unit: UnitOfWork, node_key: NodeKey, decision: DecisionRecord) -> None:
    """Have an event published about a task that a person denied, or about some tasks before an approval node.

    A task that the policy refuses fails, and its failure is published as every other.
    """
    node = unit.definition(node_key)
    if node.call is not None and decision.decision == REFUSED:
        return
    before = (NodeKey(node_key.workflow, edge.node) for edge in node.after[:MOST_BEFORE])
    nodes = [node] if node.call is not None else map(unit.definition, before)
    failure = Failure(decision.decision, "Refused", decision.why or decision.question)
    for capability in {node.call.capability: None for node in nodes if node.call is not None}:
        known = {"capability": decision.capability or capability}
        unit.effects.say("attempt.failed", node_key.task_id, **known, **failure.as_event())
