"""The routes of approvals: list and answer them, and see what was decided, and how much work needed no person."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from coditect.api.access import LOCAL, Caller, Role
from coditect.api.routes.parameters import ApiRequest, Cursor, FreeName, Limit, Who
from coditect.api.services import ApiServices, Fleet, GuardedRouter, Services
from coditect.client.approvals import ApprovalDecision, AuditFilter, AuditRow, AutonomyReport
from coditect.client.listings import APPROVAL_PAGES, AUDIT_PAGES, ListingPage
from coditect.workflow.rows import ApprovalRow

approval_router = GuardedRouter(changes=Role.APPROVER, prefix="/approvals", tags=["approvals"])


class ApprovalAnswer(ApiRequest):
    """The body of a request that grants or denies an approval: the person's name and a comment."""

    comment: str = Field(default="", max_length=2_000)
    by: str = Field(default="", max_length=200, description="Who answers; only without API keys, else the key's name.")


@approval_router.get("")
async def list_approvals(client: Fleet, cursor: Cursor = None, limit: Limit = 100) -> ListingPage[ApprovalRow]:
    """List the questions that wait for a person's answer: of approval nodes, and of the approval policy about tasks."""
    return await client.page(APPROVAL_PAGES, {}, cursor=cursor, limit=limit)


@approval_router.post("/{approval}/grant", status_code=HTTPStatus.NO_CONTENT)
async def grant_approval(
    approval: FreeName, order: ApprovalAnswer, services: Services, client: Fleet, who: Who
) -> None:
    """Grant an approval; its id is `workflow:node`. Only the first answer counts."""
    await client.approvals.grant(approval, **_answer(order, services, who))


@approval_router.post("/{approval}/deny", status_code=HTTPStatus.NO_CONTENT)
async def deny_approval(approval: FreeName, order: ApprovalAnswer, services: Services, client: Fleet, who: Who) -> None:
    """Deny an approval; its id is `workflow:node`. Only the first answer counts."""
    await client.approvals.deny(approval, **_answer(order, services, who))


def _answer(order: ApprovalAnswer, services: ApiServices, who: Caller) -> dict[str, Any]:
    by = order.by or who.name if who is LOCAL else who.name
    return {"by": by, "comment": order.comment, "key": services.opened.environ.get("CODITECT_APPROVAL_KEY") or None}


audit_router = GuardedRouter(tags=["approvals"])

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


@audit_router.get("/approvals/{approval}")
async def get_approval(approval: FreeName, client: Fleet) -> ApprovalDecision:
    """Get what was last asked or decided about a node's approval, with the node's entries in the audit trail."""
    return await client.approvals.get(approval)


@audit_router.get("/audit")
async def list_audit(conditions: Annotated[AuditConditions, Query()], client: Fleet) -> ListingPage[AuditRow]:
    """List the audit trail, the latest entry first; of one workflow at most its latest 500, the earliest first."""
    return await client.page(AUDIT_PAGES, conditions.filter().asked(), cursor=conditions.cursor, limit=conditions.limit)


@audit_router.get("/autonomy")
async def get_autonomy(client: Fleet, hours: Hours = 24) -> AutonomyReport:
    """Count the workflows and tasks that finished in the last `hours`, and how many of them a person acted on."""
    now_ms = time.time_ns() // 1_000_000
    return await client.approvals.autonomy(since_ms=now_ms - hours * HOUR_MS, until_ms=now_ms)


routers = (approval_router, audit_router)
