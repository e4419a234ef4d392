"""The routes of the fleet: capabilities, queues, topology, agents, and the health of control plane and API."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import Field

from coditect.api.access import Role
from coditect.api.routes.parameters import ApiRequest, Span
from coditect.api.services import GuardedRouter, Services, needs
from coditect.broker.management import ManagementUnavailable
from coditect.broker.port import ProbeVerdict
from coditect.broker.topology_diff import TopologyPlan
from coditect.errors import BrokerUnavailable, ResultTimeout
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import seconds
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus
from coditect.operations import fleet, topology
from coditect.operations.diagrams import Diagram, draw_living
from coditect.operations.documents import AgentDocument, OfferDocument
from coditect.operations.explain import TaskQuestion
from coditect.operations.fleet import set_log_level
from coditect.operations.locate import WhyNot, why_not_capability
from coditect.operations.overview import FleetOverview, take_overview
from coditect.operations.rebuild import Rebuilt, rebuild
from coditect.operations.scorecard import Scorecard
from coditect.operations.status import CapabilityQueues, ClusterStatus, cluster_status, list_queues
from coditect.registry.port import Search
from coditect.telemetry.metrics import exposition
from coditect.wire import routing
from coditect.wire.control_messages import LogLevelOrder

fleet_router = GuardedRouter(tags=["fleet"])

Named = Annotated[
    list[str], Query(default_factory=list, description="Can be repeated; default: what living agents offer.")
]


@dataclass(frozen=True, slots=True)
class TopologyState:
    """The needed exchanges and queues that the broker lacks or has otherwise, and the number of missing bindings."""

    clean: bool
    missing: list[str]
    differing: list[str]
    unbound: int | None
    """The number of missing bindings; None when the management API, which knows them, is not set."""
    notes: list[str]


@fleet_router.get("/capabilities")
async def list_capabilities(
    services: Services, tag: str | None = None, keyword: str | None = None
) -> list[OfferDocument]:
    """List the capabilities that living agents offer, with the JSON Schemas of input and value."""
    return [OfferDocument.of(one) for one in await fleet.find_offers(services.opened, Search(tag=tag, keyword=keyword))]


@fleet_router.get("/capabilities/{name}")
async def get_capability(name: str, services: Services) -> OfferDocument:
    """Show a capability that living agents offer, with the JSON Schemas of input and value; 404 when none offers it."""
    return OfferDocument.of(await fleet.get_offer(services.opened, name))


@fleet_router.get("/capabilities/{name}/why-not")
async def why_not_done(
    name: str,
    services: Services,
    priority: Priority = Priority.P1,
    tag: Annotated[list[str] | None, Query(description="Wanted of the agent; can be repeated.")] = None,
    given: Annotated[
        str | None, Query(alias="input", description="JSON: say what each agent is expected to need for this input.")
    ] = None,
) -> WhyNot:
    """Say for each agent whether it would take a task of this capability, priority and tags now, and if not, why."""
    body = None if given is None else given.encode()
    question = TaskQuestion(check_capability_name(name), priority, frozenset(tag or ()), body)
    return await why_not_capability(services.opened, question)


@fleet_router.get("/queues")
async def get_queues(services: Services, capability: Named) -> list[CapabilityQueues]:
    """List each capability's task queues by priority: waiting tasks, consumers, and message rates where known."""
    names = await fleet.known_capabilities(services.opened, capability)
    try:
        rates = await services.opened.queue_rates() or {}
    except ManagementUnavailable:
        rates = {}
    return await list_queues(services.broker, names, rates)


@fleet_router.get("/topology")
async def plan_topology(services: Services, capability: Named) -> TopologyState:
    """Tell which needed exchanges, queues and bindings the broker lacks or has otherwise; change nothing."""
    notes: list[str] = []
    plan = await topology.plan_topology(services.opened, capability, note=notes.append)
    return _state(plan, notes)


@fleet_router.post("/topology", dependencies=[needs(Role.ADMIN)])
async def apply_topology(services: Services, capability: Named) -> TopologyState:
    """Create the exchanges, queues and bindings that the broker lacks; leave those that differ as they are."""
    notes: list[str] = []
    plan = await topology.create_topology(services.opened, capability, note=notes.append)
    return _state(plan, notes)


@fleet_router.get("/topology/export")
async def export_topology(
    services: Services,
    capability: Named,
    form: topology.ExportForm = topology.ExportForm.DEFINITIONS,
    vhost: str = "/",
    cluster: str = "rabbitmq",
) -> dict[str, Any]:
    """Return the needed exchanges, queues and bindings as RabbitMQ definitions or Kubernetes objects; read-only."""
    return await topology.export_topology(services.opened, capability, form=form, vhost=vhost, cluster=cluster)


@fleet_router.get("/topology/diagrams")
async def draw_diagrams(services: Services) -> list[Diagram]:
    """Draw the C4 diagrams of the fleet as it lives now: context, containers, and components, also as Mermaid text."""
    return [*await draw_living(services.opened)]


@fleet_router.get("/overview")
async def get_overview(
    services: Services, most: Annotated[int, Query(ge=1, le=1_000, description="At most so many workflows.")] = 50
) -> FleetOverview:
    """Show the whole fleet at this moment: agents and what they run, queues, workflows, breakers, dead letters.

    What cannot be seen is missing, and told in `notes`.
    """
    return await take_overview(services.opened, most_workflows=most)


@fleet_router.get("/scorecard")
async def get_scorecard(services: Services) -> Scorecard:
    """Measure the fleet for five seconds and judge it by its targets: pass, fail, or unknown where nothing happened.

    Requests that come while the fleet is measured share that measurement.
    """
    return await services.scorecard.take()


@fleet_router.get("/status")
async def get_status(services: Services) -> ClusterStatus:
    """Show the control plane's dispatchers and shards."""
    async with services.opened.broker() as broker:
        return await cluster_status(broker)


@fleet_router.post("/rebuild", dependencies=[needs(Role.ADMIN)])
async def rebuild_fleet(services: Services) -> Rebuilt:
    """Restore queues, tasks and jobs that the broker or Redis lost, from the ledger; return how many of each kind."""
    async with services.opened.broker() as broker:
        return await rebuild(broker)


class LogLevelRequest(ApiRequest):
    """A log level to set, for a while or until the process ends: in one agent, or in every agent and dispatcher."""

    logger: str = Field(default="", max_length=200, description="Such as `agent.runtime`; empty for all.")
    level: Literal["debug", "info", "warning", "error"] | None = Field(
        default=None, description="Null for the level with which the process began."
    )
    lasting: Span | None = Field(default=None, description="How long; without it, until the process ends.")
    agent: str | None = Field(default=None, min_length=1, max_length=100, description="The id of the only agent.")


@fleet_router.post("/log-level", status_code=HTTPStatus.NO_CONTENT)
async def set_level(order: LogLevelRequest, services: Services) -> None:
    """Set the level of a logger, and of those below it, in every agent and dispatcher, or in one agent."""
    lasting = None if order.lasting is None else seconds(order.lasting)
    await set_log_level(services.opened, LogLevelOrder(order.logger, order.level, lasting), agent_id=order.agent)


def _state(plan: TopologyPlan, notes: list[str]) -> TopologyState:
    return TopologyState(
        plan.clean,
        [step.name for step in plan.of(ProbeVerdict.MISSING)],
        [step.name for step in plan.of(ProbeVerdict.DIFFERS)],
        None if plan.unbound is None else len(plan.unbound),
        notes,
    )


agent_router = GuardedRouter(prefix="/agents", tags=["agents"])


@agent_router.get("")
async def list_agents(
    services: Services,
    capability: str | None = None,
    tag: str | None = None,
    keyword: Annotated[str | None, Query(description="A word in a name, description or tag.")] = None,
    status: AgentStatus | None = None,
) -> list[AgentDocument]:
    """List the living agents that fit every given condition, each with its status, load and capabilities.

    The status `offline` lists those that went away within a day.
    """
    found = await fleet.find_agents(services.opened, Search(capability, tag, keyword, status))
    return [AgentDocument.of(record) for record in found]


class Drain(ApiRequest):
    """A request to drain an agent, and how long to wait for its end."""

    wait: Span | None = Field(default=None, description="How long to wait until it is gone.")


@agent_router.post(
    "/{agent_id}/drain",
    status_code=HTTPStatus.NO_CONTENT,
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


@agent_router.get("/{agent_id}")
async def get_agent(services: Services, agent_id: str) -> AgentDocument:
    """Show an agent's status, load and capabilities; `offline` for a day after it went away, then 404."""
    return AgentDocument.of(await fleet.get_agent(services.opened, AgentId(agent_id)))


health_router = GuardedRouter(tags=["health"])

READY_WITHIN_SECONDS = 2.0
FIX = "wait: it is started again by itself; the log says why it ended"


@health_router.get("/livez")
async def live() -> dict[str, str]:
    """Tell that the process answers."""
    return {"status": "ok"}


@health_router.get("/readyz")
async def ready(services: Services) -> dict[str, str]:
    """Tell whether the broker answers and every loop that the process needs runs; 503 when not."""
    if reason := services.health.why_not():
        raise BrokerUnavailable("A loop of the broker's connection is down", reason=reason, fix=FIX)
    try:
        async with asyncio.timeout(READY_WITHIN_SECONDS):
            await services.broker.stats(routing.CONTROL_QUEUE)
    except TimeoutError as error:
        raise BrokerUnavailable("The broker does not answer", within_seconds=READY_WITHIN_SECONDS) from error
    return {"status": "ok"}


@health_router.get("/metrics", include_in_schema=False)
async def metrics(services: Services) -> Response:
    """Return the metrics of the process in Prometheus' text format."""
    body, kind = exposition(services.metrics.declared, services.metrics.samples())
    return Response(body, headers={"content-type": kind})


routers = (fleet_router, agent_router)
