"""The HTTP routes that show an approval's decision, the log of all decisions, and how much work needed no person."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from coditect.api.services import Services
from coditect.client.coordination.audit import ApprovalDecision, AuditRow, AutonomyReport
from coditect.client.listings import AUDIT, ListingPage
from coditect.operations.coordination import approvals
from coditect.operations.coordination.approvals import AuditFilter

router = APIRouter(tags=["approvals"])

HOUR_MS = 3_600_000
Hours = Annotated[int, Query(ge=1, le=24 * 366, description="How many hours back from now.")]


class AuditConditions(BaseModel):
    """The conditions for a list of audit entries, which must meet all that are given, and the size of a page."""

    model_config = ConfigDict(extra="forbid")

    workflow: str | None = Field(None, max_length=100)
    node: str | None = Field(None, max_length=200)
    since_ms: int | None = Field(None, ge=1, description="From this instant on, in milliseconds since the epoch.")
    until_ms: int | None = Field(None, ge=1, description="Before this instant.")
    decision: str | None = Field(None, max_length=20, description="asked, granted, denied, refused, redriven, ...")
    by: str | None = Field(None, max_length=255, description="A person, or policy, learned, timeout or gate.")
    automatic: bool | None = Field(None, description="Only automatic decisions, or only those of people.")
    capability: str | None = Field(None, max_length=200)
    cursor: str | None = Field(None, description="The `next` of the page before; without one the first page.")
    limit: int = Field(100, ge=1, le=500)

    def filter(self) -> AuditFilter:
        """Return the conditions as an `AuditFilter`, without the cursor and the limit of the page."""
        return AuditFilter(**self.model_dump(exclude={"cursor", "limit"}))


@router.get("/approvals/{workflow}/{node}")
async def show_decision(workflow: str, node: str, services: Services) -> ApprovalDecision:
    """Show what was last asked or decided about a node's approval, with the node's entries in the audit trail."""
    return await approvals.show_decision(services.opened, workflow, node)


@router.get("/audit")
async def list_audit(
    services: Services,
    conditions: Annotated[AuditConditions, Query()],
) -> ListingPage[AuditRow]:
    """List the audit trail, the latest entry first; of one workflow at most its latest 500, the earliest first."""
    async with services.opened.fleet() as client:
        return await client.page(AUDIT, conditions.filter().asked(), cursor=conditions.cursor, limit=conditions.limit)


@router.get("/autonomy")
async def report_autonomy(services: Services, hours: Hours = 24) -> AutonomyReport:
    """Count the workflows and tasks that finished in the last `hours`, and how many of them a person acted on."""
    now_ms = time.time_ns() // 1_000_000
    return await approvals.report_autonomy(services.opened, since_ms=now_ms - hours * HOUR_MS, until_ms=now_ms)
