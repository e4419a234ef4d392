"""The HTTP routes to list, show and withdraw handoffs, by which agents pass tasks that they run to other agents."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ChangeReason, Limit, Who
from coditect.api.services import Services, needs
from coditect.collaboration.handoffs import HandoffRow
from coditect.operations.coordination import handoffs

router = APIRouter(prefix="/handoffs", tags=["handoffs"])
steered = APIRouter(prefix="/handoffs", tags=["handoffs"], dependencies=[needs(Role.OPERATOR)])


@router.get("")
async def list_handoffs(
    services: Services,
    task: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    open_only: Annotated[bool, Query(alias="open")] = False,
    limit: Limit = 100,
) -> list[HandoffRow]:
    """List handoffs without contexts: all, or of a task, workflow or agent; those of the earliest workflow first."""
    wanted = {"task": task, "workflow": workflow, "agent": agent}
    return await handoffs.list_handoffs(services.opened, **wanted, open_only=open_only, most=limit)


@router.get("/{handoff}")
async def show_handoff(handoff: str, services: Services) -> HandoffRow:
    """Show a handoff: its context, who was asked, and why each declined."""
    return await handoffs.show_handoff(services.opened, handoff)


@steered.post("/{handoff}/withdraw")
async def withdraw_handoff(handoff: str, order: ChangeReason, services: Services, who: Who) -> HandoffRow:
    """End an open handoff, so that the task stays with the agent that has it."""
    return await handoffs.withdraw_handoff(services.opened, handoff, by=who.name, reason=order.reason)
