"""The approval policy in an agent: a direct task that would need an approval is refused, since no one could be asked.

The control plane judges the tasks that it keeps, and the agent only those that come past it, with what it knows itself:
its own tags and cost estimates. A workflow task of a capability that the policy is about begins after a grant of its
shard only, so a forged owner leads nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from coditect.agent.declaration import Agent
from coditect.errors import InvalidTask
from coditect.model.result import Failure
from coditect.model.task import Task
from coditect.wire.json import loads
from coditect.wire.tasks import has_claims
from coditect.workflow.approvals.policy import (
    MAX_POLICY_STEPS,
    ApprovalCase,
    ApprovalPolicy,
    CapabilityFacts,
    Ruling,
    Subject,
)
from coditect.workflow.expressions import Account

SUBMIT_DURABLE = "submit(..., durable=True), or `coditect task submit --detach`: then it waits for the approval"


class AgentApprovals:
    """The approval policy as one agent process applies it to the tasks that reach the agent."""

    def __init__(self, agent: Agent, policy: ApprovalPolicy) -> None:
        known = {
            capability.name: CapabilityFacts(agent.tags | capability.spec.tags, capability.spec.cost)
            for capability in agent.capabilities
        }
        self._policy = replace(policy, facts=known.get)
        self.concern = partial(self._policy.may_concern, Subject.TASK)
        """Tell whether an approval rule may match a task of a capability, or tasks are not approved by default.

        A workflow task then needs a grant before it runs.
        """

    def refusal(self, task: Task) -> Failure | None:
        """Return the failure of a direct task that may not run without an approval; None for any other task."""
        if task.owner is not None or not self.concern(task.capability):
            return None
        case = ApprovalCase(Subject.TASK, task.capability, "", "", lambda: _document(task.body))
        judgement = self._policy.judge(case, Account(MAX_POLICY_STEPS))
        if judgement.action is Ruling.APPROVE:
            return None
        if judgement.action is Ruling.REFUSE:
            message, fix = f"The approval policy refuses it: {judgement.why}", "ask the operator"
            return Failure("refused_by_policy", "NotApproved", message, fix=fix)
        message = f"It needs an approval, for which only the control plane can wait: {judgement.why}"
        return Failure("approval_required", "NotApproved", message, fix=SUBMIT_DURABLE)


def _document(body: bytes) -> Mapping[str, Any] | None:
    """Return the JSON that an approval rule's expression reads; None for an input with blob references or no JSON."""
    try:
        return None if has_claims(body) else {"input": loads(body), "results": {}, "states": {}}
    except InvalidTask:
        return None
