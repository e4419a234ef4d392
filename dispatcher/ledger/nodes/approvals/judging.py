"""The judgement of a node by the approval policy: the node goes on, a person is asked, or the node ends as refused.

An approval node is judged when it begins, and a task whenever it is to be made ready: at first, for a retry, by a
redrive, as the element of a map, or as a compensation. So no way of writing a workflow leads past the policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coditect.errors import InputError
from coditect.model.result import Failure
from coditect.wire.json import loads
from coditect.wire.tasks import has_claims
from coditect.workflow.approvals.policy import (
    MAX_POLICY_STEPS,
    ApprovalCase,
    ApprovalPolicy,
    Judgement,
    Ruling,
    Subject,
)
from coditect.workflow.definition import Approval, Call
from coditect.workflow.expressions import Account
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.nodes.approvals import decisions, learned, questions
from dispatcher.ledger.nodes.approvals.decisions import ASKED, GRANTED, LEARNED, POLICY, REFUSED, DecisionRecord
from dispatcher.ledger.nodes.inputs import before, body_of, failure_of, scope_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork

REFUSAL = "refused_by_policy"
"""The reason of a node that the approval policy refused."""


def begin_approval(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, approval: Approval) -> DecisionRecord | None:
    """Decide about an approval node by the approval policy, or, if it does not decide, ask a person and return None.

    The caller carries out the decision.
    """
    record = DecisionRecord(ASKED, unit.now_ms, on_timeout=approval.on_timeout.value, question=approval.question)
    if (policy := unit.policy.approvals) is not None:
        judgement = _judge(unit, policy, _approval_case(unit, node_key))
        record = record.judged(judgement, policy.digest)
        if judgement.action is not Ruling.ASK:
            return _decide(unit, node_key, record, judgement)
    _ask(unit, node_key, row, record, approval.timeout_ms)
    return None


def may_go(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, call: Call) -> bool:
    """Tell whether the policy or an earlier grant lets a task become ready; if not, ask a person, or have it end."""
    policy = unit.policy.approvals
    if policy is None or not policy.may_concern(Subject.TASK, call.capability):
        return True
    try:
        body = body_of(unit, node_key, row)
    except DamagedValue as error:
        unit.unfit.append((node_key, failure_of(error)))
        return False
    digest, known = hashlib.sha256(body).hexdigest(), decisions.read(unit.tr, node_key)
    if known is not None and known.decision == GRANTED and known.digest == digest:
        return True
    judgement = _judge(unit, policy, _task_case(unit, node_key, call, body))
    if judgement.matched is None and judgement.action is Ruling.APPROVE:
        return True
    record = DecisionRecord(ASKED, unit.now_ms, capability=call.capability, digest=digest)
    record = record.judged(judgement, policy.digest)
    if judgement.action is Ruling.ASK:
        return _is_learned(unit, node_key, row, record, judgement)
    decided = _decide(unit, node_key, record, judgement)
    if decided.decision == REFUSED:
        unit.unfit.append((node_key, refusal(decided)))
    return decided.decision == GRANTED


def refusal(decision: DecisionRecord) -> Failure:
    """Return the failure of a node that the policy refused."""
    message = f"The approval policy refuses it: {decision.why}"
    fix = "ask the operator, or change the rule: coditect approval policy"
    return Failure(REFUSAL, "NotApproved", message, fix=fix)


def _judge(unit: UnitOfWork, policy: ApprovalPolicy, case: ApprovalCase) -> Judgement:
    account = Account(MAX_POLICY_STEPS)
    judgement = policy.judge(case, account)
    unit.steps += account.spent
    return judgement


def _decide(unit: UnitOfWork, node_key: NodeKey, record: DecisionRecord, judgement: Judgement) -> DecisionRecord:
    decision = GRANTED if judgement.action is Ruling.APPROVE else REFUSED
    decided = replace(record, decision=decision, by=POLICY)
    decisions.record(unit, node_key, decided)
    return decided


def _is_learned(
    unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, record: DecisionRecord, judgement: Judgement
) -> bool:
    """Grant a task, and return True, if recent tasks of its capability and rule ended well; else ask a person."""
    rule, policy = judgement.matched, unit.policy.approvals
    if rule is None or policy is None:
        found = None
    else:
        found = learned.evidence(unit.tr.snapshot, policy, record.capability, rule)
    if found is not None:
        record = replace(record, facts=found.facts())
        if not found.reasons_against:
            why = f"{record.why}; {found.good} of its last {found.outcomes} outcomes were good"
            decisions.record(unit, node_key, replace(record, decision=GRANTED, by=LEARNED, why=why))
            return True
    _ask_about_task(unit, node_key, row, record, judgement)
    return False


def _ask_about_task(
    unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, record: DecisionRecord, judgement: Judgement
) -> None:
    question, rule = f"May {record.capability} run? Risk {record.risk}, by {record.rule}", judgement.matched
    if rule is None:
        _ask(unit, node_key, row, replace(record, question=question), None)
    else:
        asked = replace(record, question=question, on_timeout=rule.on_timeout.value)
        _ask(unit, node_key, row, asked, rule.timeout_ms)


def _ask(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, record: DecisionRecord, timeout_ms: int | None) -> None:
    questions.ask(unit, node_key, row, record.question, timeout_ms)
    due_ms = None if timeout_ms is None else unit.now_ms + timeout_ms
    decisions.record(unit, node_key, replace(record, due_ms=due_ms))


def _task_case(unit: UnitOfWork, node_key: NodeKey, call: Call, body: bytes) -> ApprovalCase:
    def document() -> Mapping[str, Any] | None:
        return None if has_claims(body) else {"input": loads(body), "results": {}, "states": {}}

    return ApprovalCase(Subject.TASK, call.capability, _name(unit, node_key), node_key.node, document)


def _approval_case(unit: UnitOfWork, node_key: NodeKey) -> ApprovalCase:
    def document() -> Mapping[str, Any] | None:
        node = unit.definition(node_key)
        try:
            rows = unit.seen(before(node, node_key.workflow))
            return scope_of(unit.tr.snapshot, node_key, node, rows, Account()).document()
        except (InputError, DamagedValue):
            return None

    return ApprovalCase(Subject.APPROVAL, "", _name(unit, node_key), node_key.node, document)


def _name(unit: UnitOfWork, node_key: NodeKey) -> str:
    head = unit.workflow(node_key.workflow)
    return "" if head is None else head.name
