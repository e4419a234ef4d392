"""The routes of approvals: list those that wait, and answer one."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from pydantic import Field

from coditect.api.access.roles import LOCAL, Role
from coditect.api.routes.parameters import ApiRequest, Cursor, Limit, Who
from coditect.api.services import Services, needs
from coditect.client.listings import APPROVALS, ListingPage
from coditect.operations.workflows import requests as workflows
from coditect.workflow.rows import ApprovalRow

router = APIRouter(prefix="/approvals", tags=["approvals"])


class ApprovalAnswer(ApiRequest):
    """A person's answer to an approval: granted or denied, with a comment."""

    granted: bool
    comment: str = Field(default="", max_length=2_000)
    by: str = Field(default="", max_length=200, description="Who answers; only without API keys, else the key's name.")


@router.get("")
async def list_approvals(services: Services, cursor: Cursor = None, limit: Limit = 100) -> ListingPage[ApprovalRow]:
    """List the questions that wait for a person's answer: of approval nodes, and of the approval policy about tasks."""
    async with services.opened.fleet() as client:
        return await client.page(APPROVALS, {}, cursor=cursor, limit=limit)


@router.post("/{workflow}/{node}", status_code=HTTPStatus.NO_CONTENT, dependencies=[needs(Role.APPROVER)])
async def answer_approval(workflow: str, node: str, order: ApprovalAnswer, services: Services, who: Who) -> None:
    """Grant or deny the approval of a workflow's node; only the first answer counts."""
    by = order.by or who.name if who is LOCAL else who.name
    await workflows.answer_approval(
        services.opened, workflow, node, granted=order.granted, by=by, comment=order.comment
    )
