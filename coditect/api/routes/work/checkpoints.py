"""The routes of a workflow's checkpoints: list and make them, plan a restore, and restore."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from pydantic import Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, Who
from coditect.api.services import Services, needs
from coditect.client.checkpoints import RestorePlan
from coditect.operations.workflows import checkpoints
from coditect.workflow.rows import CheckpointRow

router = APIRouter(prefix="/workflows/{workflow}", tags=["workflows"])


class Restore(ApiRequest):
    """A restore to carry out, named by the token of its plan."""

    token: str = Field(description="The `token` of the plan: the restore is refused when the workflow has gone on.")


@router.get("/checkpoints")
async def list_checkpoints(workflow: str, services: Services) -> list[CheckpointRow]:
    """List a workflow's checkpoints, the earliest first: one for each completed node, and those made on request."""
    return await checkpoints.list_checkpoints(services.opened, workflow)


@router.put("/checkpoints/{name}", status_code=HTTPStatus.NO_CONTENT, dependencies=[needs(Role.OPERATOR)])
async def make_checkpoint(workflow: str, name: str, services: Services) -> None:
    """Give the present position of a workflow a name."""
    await checkpoints.make_checkpoint(services.opened, workflow, name)


@router.get("/checkpoints/{name}/plan")
async def plan_restore(workflow: str, name: str, services: Services) -> RestorePlan:
    """Show what a restore to a checkpoint would discard; nothing is changed."""
    return await checkpoints.plan_restore(services.opened, workflow, name)


@router.post("/checkpoints/{name}/restore", status_code=HTTPStatus.NO_CONTENT, dependencies=[needs(Role.OPERATOR)])
async def restore_workflow(workflow: str, name: str, order: Restore, services: Services, who: Who) -> None:
    """Restore a workflow to a checkpoint, as planned; answer 412 when it has gone on since the plan."""
    await checkpoints.restore_workflow(services.opened, workflow, RestorePlan(name, (), order.token), by=who.name)
