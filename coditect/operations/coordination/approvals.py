"""Use cases for approvals by policy: check a policy's file, show a decision, list the audit trail, report autonomy.

A call to the control plane raises ControlPlaneRequired when no dispatcher answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coditect.client.coordination.audit import ApprovalDecision, AuditRow, AutonomyReport
from coditect.operations.connections import Connections
from coditect.workflow.approvals.file import load_policy
from coditect.workflow.approvals.policy import ApprovalPolicy


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The conditions of a listing of the audit trail; every one that is set must hold."""

    workflow: str | None = None
    node: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    decision: str | None = None
    by: str | None = None
    automatic: bool | None = None
    capability: str | None = None
    rule: str | None = None
    risk: str | None = None

    def asked(self) -> dict[str, object]:
        """Return the conditions that are set, as fields of a request to the control plane."""
        told = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        return {name.removesuffix("_ms"): value for name, value in told.items()}


def check_policy(path: Path) -> ApprovalPolicy:
    """Read the file of an approval policy, check it as a dispatcher would, and return the policy.

    Raises:
        NotFound: when the file cannot be read.
        InputError: with place and remedy of every problem.
    """
    return load_policy(path)


async def show_decision(opened: Connections, workflow: str, node: str) -> ApprovalDecision:
    """Return the last question or decision about a node's approval, with the node's entries in the audit trail.

    Raises:
        NotFound: when nothing was ever asked or decided about the node.
    """
    async with opened.fleet() as client:
        return await client.decision(workflow, node)


async def report_autonomy(opened: Connections, *, since_ms: int, until_ms: int) -> AutonomyReport:
    """Report how many workflows and tasks ended in a period, how many a person acted on, and what needed a person.

    The first and the last hour of the period count whole.
    """
    async with opened.fleet() as client:
        return await client.autonomy(since_ms=since_ms, until_ms=until_ms)


async def list_audit(opened: Connections, conditions: AuditFilter, *, most: int) -> list[AuditRow]:
    """Return at most `most` audit entries, latest first; those of one workflow earliest first, from its last 500."""
    async with opened.fleet() as client:
        return [row async for row in client.audit(most=most, **conditions.asked())]
