"""The routes of agents: list the living ones, show one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from coditect.api.services import Services
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
    """List the living agents with their state, load and capabilities."""
    found = await fleet.find_agents(services.opened, Search(capability, tag, keyword, status))
    return [AgentDocument.of(record) for record in found]


@router.get("/{agent_id}")
async def show_agent(services: Services, agent_id: str) -> AgentDocument:
    """Show one living agent."""
    return AgentDocument.of(await fleet.get_agent(services.opened, AgentId(agent_id)))
