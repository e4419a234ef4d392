"""The HTTP routes that show the course of a task or workflow as a tree, or draw the graph of a workflow."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from coditect.api.services import Services
from coditect.operations.trace import Hop, task_path
from coditect.operations.workflows import requests as workflows
from coditect.workflow.documents.reader import definition_of
from coditect.workflow.render import draw_mermaid, draw_text

router = APIRouter()


@router.get("/tasks/{task_id}/trace", tags=["tasks"])
async def trace_task(task_id: str, services: Services, capability: str | None = None) -> Hop:
    """Show the path of a task, from the ledger and from what messages carry: every attempt, by whom, how long."""
    return await task_path(services.opened, task_id, capability=capability)


@router.get("/workflows/{workflow}/trace", tags=["workflows"])
async def trace_workflow(workflow: str, services: Services) -> Hop:
    """Show the path of a workflow as a tree of nodes, attempts and child workflows."""
    return await task_path(services.opened, workflow)


@router.get(
    "/workflows/{workflow}/graph",
    tags=["workflows"],
    response_class=PlainTextResponse,
    responses={200: {"description": "The drawing.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def draw_workflow(workflow: str, services: Services, form: Literal["text", "mermaid"] = "mermaid") -> Response:
    """Draw a workflow's graph with the states of its nodes, as text or as a Mermaid flowchart."""
    name, rows = await workflows.show_nodes(services.opened, workflow)
    draw = draw_text if form == "text" else draw_mermaid
    return PlainTextResponse(draw(definition_of(name, rows), {row.name: row.state for row in rows}))
