"""The connections and other objects that the API's routes work with, and the FastAPI dependencies that provide them.

The application is made with one `ApiServices`; a route takes it as a parameter of the type `Services`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import APIRouter, Depends
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from coditect.aio.supervisor import Health
from coditect.api.access import Access, Caller, Role
from coditect.api.guard import RequestRates
from coditect.api.live import LiveFeed
from coditect.api.problems import RequestRefused
from coditect.api.webhooks import WebhookSender
from coditect.broker.port import Broker
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.errors import NotFound, SetupError
from coditect.integrations.http.bridge import HttpAgents
from coditect.operations.connections import Connections
from coditect.operations.scorecard import SharedScorecard
from coditect.telemetry.metrics import MemoryMetrics

if TYPE_CHECKING:
    from coditect.integrations.a2a.serving import A2aEndpoints  # of an extra that may be missing

MOST_HANDLES = 1_000


class DirectTasks:
    """The handles of the direct tasks that this process submitted last; the oldest make room for new ones."""

    def __init__(self, *, most: int = MOST_HANDLES) -> None:
        self._most = most
        self._handles: OrderedDict[str, Handle] = OrderedDict()

    def add(self, handle: Handle) -> None:
        """Keep the handle of a submitted direct task, and forget the oldest handle if there are too many."""
        self._handles[handle.task_id] = handle
        if len(self._handles) > self._most:
            _, oldest = self._handles.popitem(last=False)
            oldest.forget()

    def get(self, task_id: str) -> Handle:
        """Return the handle of the direct task with the given id.

        Raises:
            NotFound: when this process did not submit the task, or has forgotten it.
        """
        handle = self._handles.get(task_id)
        if handle is None:
            fix = "ask where it was submitted, or submit with `durable`: the control plane keeps such a task"
            raise NotFound("This API process has no such direct task", task_id=task_id, fix=fix)
        return handle


@dataclass(frozen=True, slots=True)
class ApiServices:
    """The open connections and services that the routes of one application of the HTTP API work with."""

    opened: Connections
    """The connections for the use cases, open as long as the application serves."""
    broker: Broker
    """An open broker to look at queues with, which all requests share."""
    access: Access
    rates: RequestRates
    direct_tasks: DirectTasks
    feed: LiveFeed
    """The live events, open as long as the application serves."""
    webhooks: WebhookSender
    scorecard: SharedScorecard
    health: Health = field(default_factory=Health)
    """The health of the loops without which the process cannot work."""
    http_agents: HttpAgents | None = None
    """The bridge to HTTP agents, if this application has one."""
    mcp: ASGIApp | None = None
    """The fleet as an MCP server over HTTP, which checks no caller; None where the extra `mcp` is not installed."""
    trace_url: str | None = None
    """The address of a trace in a tracing tool, with `{trace}` in place of its id."""
    a2a: Callable[[], A2aEndpoints] | None = None
    """Loads the fleet as an A2A agent, at the first request; None where the extra `a2a` is not installed."""
    metrics: MemoryMetrics = field(default_factory=MemoryMetrics)
    """The metrics of the process."""


async def _services(connection: HTTPConnection) -> ApiServices:
    return cast(ApiServices, connection.app.state.services)


Services = Annotated[ApiServices, Depends(_services)]
"""The type of a route's parameter that takes the services."""


async def _fleet(services: Services) -> AsyncIterator[Client]:
    async with services.opened.fleet() as client:
        yield client


Fleet = Annotated[Client, Depends(_fleet)]
"""The type of a route's parameter that takes the client which all requests share."""


async def _http_agents(services: Services) -> HttpAgents:
    if services.http_agents is None:
        raise SetupError("This API serves no HTTP agents", fix="coditect api serves them")
    return services.http_agents


HttpBridging = Annotated[HttpAgents, Depends(_http_agents)]
"""The type of a route's parameter that takes the bridge to HTTP agents."""


def check_role(caller: Caller, role: Role) -> None:
    """Raise RequestRefused (403) unless a caller has the given role or a more powerful one.

    Raises:
        RequestRefused: 403, when the caller's role may not.
    """
    if not caller.role.may(role):
        fix = f"use a key that has it, or a more powerful one: coditect api key create NAME --role {role.value}"
        sentence = f"This needs the role {role.value}; {caller.name} has the role {caller.role.value}"
        raise RequestRefused(HTTPStatus.FORBIDDEN, sentence, fix=fix)


async def caller_of(connection: HTTPConnection) -> Caller:
    """Return the caller of a request, which is in `connection.state.caller` from then on.

    The first call for a request checks the caller's credentials and counts the request against the rate limit.

    Raises:
        RequestRefused: 401, when the request has no valid credentials.
        HTTPException: 429, when the caller sends too many requests.
    """
    caller: Caller | None = getattr(connection.state, "caller", None)
    if caller is None:
        services = await _services(connection)
        caller = connection.state.caller = await services.access.caller(connection)
        services.rates.take(caller.name)
    return caller


@cache
def needs(role: Role) -> Any:
    """Return the FastAPI dependency that admits callers of a role, or a more powerful one, within the rate limit."""

    async def check(connection: HTTPConnection) -> None:
        check_role(await caller_of(connection), role)

    return Depends(check)


class GuardedRouter(APIRouter):
    """A router whose routes that are no GET need the role `changes`, unless they name another one by `needs`."""

    def __init__(self, *, changes: Role = Role.OPERATOR, **options: Any) -> None:
        super().__init__(**options)
        self._changes = needs(changes)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route, with the role that it needs."""
        dependencies = options.pop("dependencies", None) or []
        if options["methods"] != ["GET"] and not any(needs(role) in dependencies for role in Role):
            dependencies = [self._changes, *dependencies]
        super().add_api_route(path, endpoint, dependencies=dependencies, **options)
