"""The FastAPI application of the HTTP API, made from open connections and services; it has no state of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from coditect import __version__
from coditect.api.a2a_route import a2a_routes
from coditect.api.access.guard import LOOPBACK_NAMES, RequestGuard
from coditect.api.access.roles import Role
from coditect.api.dashboard_files import DashboardFiles
from coditect.api.limits import BodyLimit
from coditect.api.mcp_route import mcp_route
from coditect.api.problems import RESPONSES, add_problem_handlers, problem_schemas
from coditect.api.routes import (
    agents,
    coordination,
    events,
    fleet,
    handoffs,
    health,
    http_agents,
    spaces,
    threads,
    webhooks,
)
from coditect.api.routes.work import (
    approvals,
    audit,
    checkpoints,
    dead,
    patterns,
    schedules,
    tasks,
    traces,
    workflows,
)
from coditect.api.services import ApiServices, caller_of, needs
from coditect.settings.api import ApiSettings

DASHBOARD = Path(__file__).parent / "dashboard"
"""The folder of the dashboard's files, which are served at `/`."""
ROUTERS: tuple[APIRouter, ...] = (
    tasks.router,
    agents.router,
    fleet.router,
    workflows.router,
    workflows.steered,
    checkpoints.router,
    approvals.router,
    audit.router,
    dead.router,
    schedules.router,
    schedules.steered,
    coordination.router,
    coordination.steered,
    spaces.router,
    spaces.steered,
    handoffs.router,
    handoffs.steered,
    threads.router,
    threads.steered,
    traces.router,
    patterns.router,
    patterns.steered,
    events.router,
    webhooks.router,
    webhooks.steered,
)
"""The routers below `/v1`, the most used ones first, since a request is compared with one after the other."""
DESCRIPTION = "Submit and steer the work of a fleet of agents, and see what it does."


class DocumentedApi(FastAPI):
    """An application whose OpenAPI document has the schemas of problem documents, which FastAPI would not add."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of the application."""
        document = super().openapi()
        document["components"]["schemas"] |= problem_schemas()
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}, {}]  # an API without keys serves its own machine
        return document


def create_app(services: ApiServices, settings: ApiSettings, *, dashboard: Path = DASHBOARD) -> FastAPI:
    """Return the API's application over open connections and services, with the dashboard if its folder has one."""
    app = DocumentedApi(
        title="Coditect",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        responses=RESPONSES,
    )
    app.state.services = services
    add_problem_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.body_bytes, admit=_admit)
    app.add_middleware(RequestGuard, hosts=allowed_hosts(settings))
    for router in ROUTERS:
        app.include_router(router, prefix="/v1", dependencies=[needs(Role.VIEWER)])
    app.include_router(health.router)
    app.include_router(http_agents.router)
    if services.mcp is not None:
        app.router.routes.append(mcp_route(services.mcp))
    if services.a2a is not None:
        app.router.routes.extend(a2a_routes(services, services.a2a))
    if (dashboard / "index.html").is_file():
        app.mount("/", DashboardFiles(dashboard), name="dashboard")
    return app


def allowed_hosts(settings: ApiSettings) -> frozenset[str] | None:
    """Return the host names by which the API may be reached; None (any) if callers need keys and no names are set."""
    named = frozenset(name.strip().lower() for name in (settings.hosts or "").split(",") if name.strip())
    if settings.secured and not named:
        return None
    return named | LOOPBACK_NAMES


async def _admit(connection: HTTPConnection) -> None:
    """Check a caller's credentials before a body is read, except where the path itself is the credential."""
    if not connection.scope["path"].startswith(http_agents.CALLBACK_PATH):
        await caller_of(connection)


def _operation_id(route: APIRoute) -> str:
    return route.name
