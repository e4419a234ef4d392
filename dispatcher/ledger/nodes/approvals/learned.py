"""The recent outcomes of tasks, by capability and approval rule, from which rules learn to approve without a question.

Each shard keeps its own outcomes of a kind, so shards never wait for each other; a decision reads those of all. What
completed is good. What failed, died, was rejected, was denied by a person, or was compensated afterwards is bad. What
was canceled is neither.
"""

from __future__ import annotations

from coditect.workflow.approvals.policy import ApprovalPolicy, ApprovalRule, Evidence, Subject
from coditect.workflow.states import TaskState
from dispatcher.ledger import versions
from dispatcher.ledger.effects import Effects, NodeKey
from dispatcher.ledger.keyspace import LEARNED
from dispatcher.ledger.nodes.approvals import decisions
from dispatcher.store.transaction import Reads, Transaction

MOST_KEPT = 200
"""The number of outcomes that a shard keeps of one kind: the largest window of a policy."""
MOST_SHARDS = 1_024
_GOOD = {TaskState.COMPLETED: True, TaskState.FAILED: False, TaskState.DEAD: False, TaskState.REJECTED: False}


def note(tr: Transaction, shard: int, policy: ApprovalPolicy, effects: Effects, now_ms: int) -> None:
    """Record the outcomes of a transaction's ended tasks for approval rules that learn from them.

    A compensation that has ended counts as a bad outcome of the task that it was to undo.
    """
    if policy.learning is None:
        return
    for moved in effects.transitions:
        good = _GOOD.get(moved.state)
        if good is None or not moved.capability:
            continue
        node_key = moved.node_key
        if node_key.is_compensation:
            _add(tr, shard, policy, node_key.compensated, now_ms, good=False)
        if (moved.row.publication or moved.row.reason == "denied") and policy.may_concern(
            Subject.TASK, moved.capability
        ):
            _add(tr, shard, policy, node_key, now_ms, good=good)


def evidence(tr: Reads, policy: ApprovalPolicy, capability: str, rule: ApprovalRule) -> Evidence | None:
    """Return a capability's recent outcomes under an approval rule, summed up; None when the rule does not learn."""
    if policy.learning is None or not rule.learn:
        return None
    rows = tr.get_range(*LEARNED.range((capability, rule.name)), limit=MOST_SHARDS)
    found = sorted((at_ms, good) for _, row in rows for at_ms, good in versions.LEARNED.unpack(row))
    return Evidence.of([bool(good) for _, good in found], policy.learning, rule.risk)


def _add(tr: Transaction, shard: int, policy: ApprovalPolicy, node_key: NodeKey, now_ms: int, *, good: bool) -> None:
    known = decisions.read(tr, node_key)
    if known is None or not policy.learns(known.rule):
        return
    key = LEARNED.pack((known.capability, known.rule, shard))
    stored = tr.get(key)
    before = [] if stored is None else versions.LEARNED.unpack(stored)
    tr.set(key, versions.LEARNED.pack([*before, [now_ms, int(good)]][-MOST_KEPT:]))
