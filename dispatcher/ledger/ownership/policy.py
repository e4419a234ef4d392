"""The settings of a shard's transactions: the lowest new fence, who approves what, and where nodes go."""

from __future__ import annotations

from dataclasses import dataclass

from coditect.workflow.approvals.policy import ApprovalPolicy


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a shard's transactions, such as where nodes go, and what needs an approval."""

    shard: int
    follow_on: bool = True
    """Whether a node that becomes ready goes to the agent that has just ended a predecessor, if that agent is free."""
    floor: int = 0
    """The number below every fence and publication number: see `ledger/ownership/incarnation.py`."""
    since_ms: int = 0  # the instant from which the dispatcher owns the shard, and hears of it
    approvals: ApprovalPolicy | None = None
    """The policy by which tasks and approvals are approved, asked about or refused; None asks every approval."""
    traced: bool = False
    """Whether the dispatcher traces, so that a workflow that no request starts has names for its tasks' spans."""
