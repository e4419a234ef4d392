"""The routes, at the root, of agents that speak only HTTP: register, send heartbeats, be found, answer.

The lists have the whole fleet, for users of other platforms; `/v1` has the same with more to choose by.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query

from coditect.api.access.roles import Role
from coditect.api.services import HttpBridging, Services, needs
from coditect.integrations.http.directory import AgentHealth, Registered
from coditect.integrations.http.messages import AgentRequestEvent, AgentResponseEvent
from coditect.integrations.http.registration import HttpRegistration
from coditect.model.ids import AgentId
from coditect.operations.documents.fleet import AgentDocument, SpecDocument
from coditect.registry.port import Search

CALLBACK_PATH = "/agent-response"
"""The path below which HTTP agents post their later answers, each with the token that it was given."""
router = APIRouter(tags=["http agents"])
Id = Annotated[str, Path(max_length=100)]
Token = Annotated[str, Path(max_length=200)]
READS = [needs(Role.VIEWER)]
CHANGES = [needs(Role.OPERATOR)]


calls = APIRouter()
"""The requests that the bridge makes, for the OpenAPI document alone."""


@calls.post("{$request.body#/base_url}/agent-request", responses={202: {"description": "The answer comes later."}})
async def ask_http_agent(event: AgentRequestEvent) -> AgentResponseEvent:  # type: ignore[empty-body]
    """Run a task: the request that Coditect posts to an HTTP agent; the agent may post its answer later (202)."""


@router.post("/register", status_code=HTTPStatus.CREATED, dependencies=CHANGES, callbacks=calls.routes)
async def register_agent(agents: HttpBridging, registration: HttpRegistration) -> Registered:
    """Register an agent that speaks only HTTP, or change its registration; the same name and URL give the same id."""
    return await agents.register(registration)


@router.post("/agents/{agent_id}/heartbeat", dependencies=CHANGES)
async def beat(agents: HttpBridging, agent_id: Id) -> Registered:
    """Record an HTTP agent's sign of life; answer 404 when it has to register again."""
    return await agents.beat(AgentId(agent_id))


@router.get("/agents", dependencies=READS)
async def list_all_agents(agents: HttpBridging) -> list[AgentDocument]:
    """List the living agents, those that speak only HTTP among them."""
    return [AgentDocument.of(record) for record in await agents.find(Search())]


@router.get("/agents/{agent_id}", dependencies=READS)
async def show_any_agent(agents: HttpBridging, agent_id: Id) -> AgentDocument:
    """Show a living agent's status, load and capabilities; 404 without a living agent of the id."""
    return AgentDocument.of(await agents.get(AgentId(agent_id)))


@router.get("/capabilities/search", dependencies=READS)
async def search_capabilities(
    agents: HttpBridging,
    q: Annotated[str, Query(description="A text in a name, description or tag, in any case.", max_length=200)] = "",
) -> list[SpecDocument]:
    """Find the capabilities that living agents offer by a text; without one, all of them."""
    return [SpecDocument.of(spec) for spec in await agents.capabilities(q)]


@router.get("/health/{agent_id}", dependencies=READS)
async def show_health(agents: HttpBridging, agent_id: Id) -> AgentHealth:
    """Tell whether a living agent takes tasks, and if not, why."""
    return await agents.health(AgentId(agent_id))


@router.post(CALLBACK_PATH + "/{token}", status_code=HTTPStatus.NO_CONTENT)
async def take_answer(agents: HttpBridging, services: Services, token: Token, answer: AgentResponseEvent) -> None:
    """Accept the later answer of an HTTP agent, which carries the token of its request; any API process takes it."""
    await agents.answer(token, answer, services.broker)
