"""The routes of the fleet as a whole: capabilities, queues, topology, and the status of the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, Span
from coditect.api.services import Services, needs
from coditect.broker.management import ManagementUnavailable
from coditect.broker.topology_diff import ProbeVerdict, TopologyPlan
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import seconds
from coditect.operations import fleet, topology
from coditect.operations.diagnosis.explain import TaskQuestion
from coditect.operations.diagnosis.queues import CapabilityQueues, list_queues
from coditect.operations.diagnosis.why_not import WhyNot, why_not_capability
from coditect.operations.documents.fleet import OfferDocument
from coditect.operations.log_levels import set_log_level
from coditect.operations.overview import FleetOverview, take_overview
from coditect.operations.rebuild import Rebuilt, rebuild
from coditect.operations.status import ClusterStatus, cluster_status
from coditect.registry.port import Search
from coditect.wire.control_messages import LogLevelOrder

router = APIRouter(tags=["fleet"])

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


@router.get("/capabilities")
async def list_capabilities(
    services: Services, tag: str | None = None, keyword: str | None = None
) -> list[OfferDocument]:
    """List the capabilities that living agents offer, with the JSON Schemas of input and value."""
    return [OfferDocument.of(one) for one in await fleet.find_offers(services.opened, Search(tag=tag, keyword=keyword))]


@router.get("/capabilities/{name}")
async def show_capability(name: str, services: Services) -> OfferDocument:
    """Show a capability that living agents offer, with the JSON Schemas of input and value; 404 when none offers it."""
    return OfferDocument.of(await fleet.get_offer(services.opened, name))


@router.get("/capabilities/{name}/why-not")
async def why_not_done(
    name: str,
    services: Services,
    priority: Priority = Priority.P1,
    tag: Annotated[list[str] | None, Query(description="Wanted of the agent; can be repeated.")] = None,
) -> WhyNot:
    """Say for each agent whether it would take a task of this capability, priority and tags now, and if not, why."""
    question = TaskQuestion(check_capability_name(name), priority, frozenset(tag or ()))
    return await why_not_capability(services.opened, question)


@router.get("/queues")
async def show_queues(services: Services, capability: Named) -> list[CapabilityQueues]:
    """List each capability's task queues by priority: waiting tasks, consumers, and message rates where known."""
    names = await fleet.known_capabilities(services.opened, capability, note=_ignored)
    try:
        rates = await services.opened.queue_rates() or {}
    except ManagementUnavailable:
        rates = {}
    return await list_queues(services.broker, names, rates)


@router.get("/topology")
async def plan_topology(services: Services, capability: Named) -> TopologyState:
    """Tell which needed exchanges, queues and bindings the broker lacks or has otherwise; change nothing."""
    notes: list[str] = []
    plan = await topology.plan_topology(services.opened, capability, note=notes.append)
    return _state(plan, notes)


@router.post("/topology", dependencies=[needs(Role.ADMIN)])
async def apply_topology(services: Services, capability: Named) -> TopologyState:
    """Create the exchanges, queues and bindings that the broker lacks; leave those that differ as they are."""
    notes: list[str] = []
    plan = await topology.create_topology(services.opened, capability, note=notes.append)
    return _state(plan, notes)


@router.get("/topology/export")
async def export_topology(
    services: Services,
    capability: Named,
    form: topology.ExportForm = topology.ExportForm.DEFINITIONS,
    vhost: str = "/",
    cluster: str = "rabbitmq",
) -> dict[str, Any]:
    """Return the needed exchanges, queues and bindings as RabbitMQ definitions or Kubernetes objects; read-only."""
    return await topology.export_topology(
        services.opened, capability, form=form, vhost=vhost, cluster=cluster, note=_ignored
    )


@router.get("/overview")
async def show_overview(
    services: Services, most: Annotated[int, Query(ge=1, le=1_000, description="At most so many workflows.")] = 50
) -> FleetOverview:
    """Show the whole fleet at this moment: agents and what they run, queues, workflows, breakers, dead letters.

    What cannot be seen is missing, and told in `notes`.
    """
    return await take_overview(services.opened, most_workflows=most)


@router.get("/status")
async def show_status(services: Services) -> ClusterStatus:
    """Show the control plane's dispatchers and shards."""
    async with services.opened.broker() as broker:
        return await cluster_status(broker)


@router.post("/rebuild", dependencies=[needs(Role.ADMIN)])
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


@router.post("/log-level", status_code=HTTPStatus.NO_CONTENT, dependencies=[needs(Role.OPERATOR)])
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


def _ignored(note: str) -> None:
    """Ignore a note about what could not be read; the answer has only what could be read."""
