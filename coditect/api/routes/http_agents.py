"""The routes of agents that speak only HTTP: register, send heartbeats, be found, answer.

At the root they have the whole fleet, also with the field names of other platforms; `/v1` has more to choose by.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Query

from coditect.api.access import Role
from coditect.api.routes.parameters import Who
from coditect.api.services import GuardedRouter, HttpBridging, Services, needs
from coditect.integrations.http.bridge import AgentHealth, Registered
from coditect.integrations.http.messages import AgentRequestEvent, AgentResponseEvent
from coditect.integrations.http.registration import AGENT_NAME, BASE_URL, HttpRegistration, types_of
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord
from coditect.operations.documents import AgentDocument, SpecDocument

CALLBACK_PATH = "/agent-response"
"""The path below which HTTP agents post their later answers, each with the token that it was given."""
router = APIRouter(tags=["http agents"])
Id = Annotated[str, Path(max_length=100)]
Token = Annotated[str, Path(max_length=200)]
READS = [needs(Role.VIEWER)]
CHANGES = [needs(Role.OPERATOR)]
steered = GuardedRouter(prefix="/agents", tags=["http agents"])
"""The routes that are also below `/v1`."""


@dataclass(frozen=True, slots=True)
class ListedCapability(SpecDocument):
    """A capability as an agent declares it, with the field names of other platforms."""

    parameters: dict[str, Any]
    """The type of each parameter, by its name."""
    cost_estimate: float

    @classmethod
    def of(cls, spec: CapabilitySpec) -> Self:
        """Convert a capability's declaration to plain values for answers in JSON."""
        own = _values(SpecDocument.of(spec))
        return cls(**own, parameters=types_of(spec.input_schema), cost_estimate=spec.cost)


@dataclass(frozen=True, slots=True)
class ListedAgent(AgentDocument):
    """An agent as the registries show it, with the field names of other platforms."""

    capabilities: tuple[ListedCapability, ...]
    agent_name: str
    base_url: str | None
    """The URL of an agent that speaks only HTTP."""
    reason: str
    """Why the agent takes no tasks, or fails; empty when nothing is known to be wrong."""

    @classmethod
    def of(cls, record: AgentRecord) -> Self:
        """Convert an agent's registry record to plain values for answers in JSON."""
        agent, own = record.registration, _values(AgentDocument.of(record))
        own["capabilities"] = tuple(map(ListedCapability.of, agent.capabilities))
        name, url = str(agent.metadata.get(AGENT_NAME, agent.name)), agent.metadata.get(BASE_URL)
        url = url if isinstance(url, str) else None
        return cls(**own, agent_name=name, base_url=url, reason=record.load.trouble)


def _values(document: SpecDocument | AgentDocument) -> dict[str, Any]:
    return {field.name: getattr(document, field.name) for field in fields(document)}


calls = APIRouter()
"""The requests that the bridge makes, for the OpenAPI document alone."""


@calls.post("{$request.body#/base_url}/agent-request", responses={202: {"description": "The answer comes later."}})
async def ask_http_agent(event: AgentRequestEvent) -> AgentResponseEvent:  # type: ignore[empty-body]
    """Run a task: the request that Coditect posts to an HTTP agent; the agent may post its answer later (202)."""


@router.post("/register", status_code=HTTPStatus.CREATED, dependencies=CHANGES, callbacks=calls.routes)
@steered.post("", status_code=HTTPStatus.CREATED, name="create_agent")
async def register_agent(agents: HttpBridging, registration: HttpRegistration, who: Who) -> Registered:
    """Register an agent that speaks only HTTP, or change its registration; the same name and URL give the same id.

    409 if another key registered the agent with another URL.
    """
    return await agents.register(registration, by=who.name, admin=who.role is Role.ADMIN)


@router.post("/agents/{agent_id}/heartbeat", dependencies=CHANGES)
@steered.post("/{agent_id}/heartbeat", name="renew_agent")
async def beat(agents: HttpBridging, agent_id: Id) -> Registered:
    """Record an HTTP agent's sign of life; answer 404 when it has to register again."""
    return await agents.beat(AgentId(agent_id))


@router.get("/agents", dependencies=READS)
async def list_all_agents(agents: HttpBridging) -> list[ListedAgent]:
    """List the living agents, and as `offline` those that went away within a day."""
    return [ListedAgent.of(record) for record in await agents.everyone()]


@router.get("/agents/{agent_id}", dependencies=READS)
async def get_any_agent(agents: HttpBridging, agent_id: Id) -> ListedAgent:
    """Show an agent's status, load and capabilities; `offline` for a day after it went away, then 404."""
    return ListedAgent.of(await agents.get(AgentId(agent_id)))


@router.get("/capabilities/search", dependencies=READS)
async def search_capabilities(
    agents: HttpBridging,
    q: Annotated[str, Query(description="A text in a name, description or tag, in any case.", max_length=200)] = "",
) -> list[ListedCapability]:
    """Find the capabilities that living agents offer by a text; without one, all of them."""
    return [ListedCapability.of(spec) for spec in await agents.capabilities(q)]


@router.get("/health/{agent_id}", dependencies=READS)
async def get_health(agents: HttpBridging, agent_id: Id) -> AgentHealth:
    """Tell whether an agent takes tasks, and if not, why."""
    return await agents.health(AgentId(agent_id))


@router.post(CALLBACK_PATH + "/{token}", status_code=HTTPStatus.NO_CONTENT)
async def take_answer(agents: HttpBridging, services: Services, token: Token, answer: AgentResponseEvent) -> None:
    """Accept the later answer of an HTTP agent, which carries the token of its request; any API process takes it."""
    await agents.answer(token, answer, services.broker)
