"""The routes of agents: list the living ones, show one, and drain one."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, Span
from coditect.api.services import Services, needs
from coditect.errors import ResultTimeout
from coditect.model.duration import seconds
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus
from coditect.operations import fleet
from coditect.operations.documents.fleet import AgentDocument
from coditect.registry.port import Search

router = APIRouter(prefix="/agents", tags=["agents"])


@router.get("")
async def list_agents(
    services: Services,
    capability: str | None = None,
    tag: str | None = None,
    keyword: Annotated[str | None, Query(description="A word in a name, description or tag.")] = None,
    status: AgentStatus | None = None,
) -> list[AgentDocument]:
    """List the living agents that fit every given condition, each with its status, load and capabilities."""
    found = await fleet.find_agents(services.opened, Search(capability, tag, keyword, status))
    return [AgentDocument.of(record) for record in found]


class Drain(ApiRequest):
    """A request to drain an agent, and how long to wait for its end."""

    wait: Span | None = Field(default=None, description="How long to wait until it is gone.")


@router.post(
    "/{agent_id}/drain",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[needs(Role.OPERATOR)],
    responses={202: {"description": "The agent still drains; it goes on by itself."}},
)
async def drain_agent(services: Services, agent_id: str, order: Drain) -> Response:
    """Ask an agent to take nothing new, finish what it runs, and end; 202 when it still drains after `wait`."""
    wait_seconds = None if order.wait is None else seconds(order.wait)
    try:
        await fleet.drain_agent(services.opened, AgentId(agent_id), wait_seconds=wait_seconds)
    except ResultTimeout:
        return Response(status_code=HTTPStatus.ACCEPTED)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get("/{agent_id}")
async def show_agent(services: Services, agent_id: str) -> AgentDocument:
    """Show a living agent's status, load and capabilities; 404 without a living agent of the id."""
    return AgentDocument.of(await fleet.get_agent(services.opened, AgentId(agent_id)))
