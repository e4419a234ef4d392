"""The FastAPI application of the HTTP API, made from open connections and services; it has no state of its own.

Beside the routers of `routes/` it serves the dashboard's files, `/mcp`, and the fleet's A2A agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache, partial
from http import HTTPStatus
from os import PathLike, stat_result
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from coditect import __version__
from coditect.api.access import Caller, OpenAccess, Role
from coditect.api.guard import LOOPBACK_NAMES, BodyLimit, RequestGuard
from coditect.api.problems import RESPONSES, add_problem_handlers, problem_schemas
from coditect.api.routes import (
    approvals,
    collaboration,
    coordination,
    events,
    fleet,
    http_agents,
    schedules,
    tasks,
    threads,
    workflows,
)
from coditect.api.services import ApiServices, caller_of, check_role, needs
from coditect.settings.settings import ApiSettings
from coditect.wire.tasks import MAX_BODY_BYTES

if TYPE_CHECKING:
    from coditect.integrations.a2a.serving import A2aEndpoints

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""The content security policy: only files of this origin, no inline script or style, no evaluation of text."""
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),  # asked again each time, answered with 304 as long as the file is the same
)


class DashboardFiles(StaticFiles):
    """The web application that serves a folder's files, with security headers; for the folder itself `index.html`."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 when the browser has it, with the headers for security and caching."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(dict(HEADERS))
        return response


MCP_PATH = "/mcp"


class GuardedMcp:
    """An MCP server behind the API's access check: its callers need the role operator, or a more powerful one."""

    def __init__(self, server: ASGIApp) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its caller may submit work, and is within the rate limit.

        Raises:
            RequestRefused: when the caller may not, or sends too many requests.
        """
        check_role(await caller_of(HTTPConnection(scope)), Role.OPERATOR)
        await self._server(scope, receive, send)


def mcp_route(server: ASGIApp) -> Route:
    """Return the route `/mcp` to an MCP server, for callers with the role operator, or a more powerful one."""
    return Route(MCP_PATH, GuardedMcp(server), include_in_schema=False)


CARD = "/.well-known/agent-card.json"
A2A_PATH = "/a2a"


def a2a_routes(services: ApiServices, load: Callable[[], A2aEndpoints]) -> list[Route]:
    """Return the routes of an A2A agent, which is loaded in a thread at the first request.

    Who reads may ask for tasks; sending and canceling need the role operator. A caller without credentials gets a card
    that says which are wanted, and not what the fleet can do.
    """

    loaded: A2aEndpoints | None = None

    async def fleet() -> A2aEndpoints:
        nonlocal loaded
        if loaded is None:
            loaded = await asyncio.to_thread(load)
        return loaded

    async def agent_card(request: Request) -> Response:
        known = isinstance(services.access, OpenAccess) or "authorization" in request.headers
        if known:
            check_role(await caller_of(request), Role.VIEWER)
        card: Response = await (await fleet()).card(request, _address(request), whole=known)
        return card

    async def a2a_call(request: Request) -> Response:
        caller = await caller_of(request)
        check_role(caller, Role.VIEWER)
        agent = await fleet()
        try:
            body = await request.body()
        except HTTPException as error:
            if error.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise
            return JSONResponse(agent.refusal(error.detail))
        if len(body) > MAX_BODY_BYTES:  # reading data takes microseconds for each number, and stops all else meanwhile
            return JSONResponse(agent.refusal(f"A request has at most {MAX_BODY_BYTES} bytes"))
        if (refused := await agent.unsupported(request)) is not None:
            return JSONResponse(refused)
        answer: Response = await agent.call(request, _address(request), caller.name, partial(_check, caller))
        return answer

    return [Route(CARD, agent_card, methods=["GET"]), Route(A2A_PATH, a2a_call, methods=["POST"])]


def _check(caller: Caller, role: str) -> None:
    check_role(caller, Role(role))


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/") + A2A_PATH


DASHBOARD = Path(__file__).parent / "dashboard"
"""The folder of the dashboard's files, which are served at `/`."""
ROUTERS: tuple[APIRouter, ...] = (
    *tasks.routers,
    *fleet.routers,
    *workflows.routers,
    *approvals.routers,
    *schedules.routers,
    *coordination.routers,
    *threads.routers,
    *events.routers,
    http_agents.steered,
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
        docs_url=None,  # its page would load scripts from elsewhere: the dashboard renders the document
        redoc_url=None,
    )
    app.state.services = services
    add_problem_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.body_bytes, admit=_admit)
    app.add_middleware(RequestGuard, hosts=allowed_hosts(settings))
    app.router.routes.extend(api_routes())
    if services.mcp is not None:
        app.router.routes.append(mcp_route(services.mcp))
    if services.a2a is not None:
        app.router.routes.extend(a2a_routes(services, services.a2a))
    if (dashboard / "index.html").is_file():
        app.router.routes.append(Route("/docs", lambda _: RedirectResponse("/#/docs")))
        app.mount("/", DashboardFiles(directory=dashboard, html=True), name="dashboard")
    return app


@cache
def api_routes() -> tuple[BaseRoute, ...]:
    """Return the routes of all routers, which FastAPI works out at their first request, once for all applications."""
    every = APIRouter(generate_unique_id_function=_operation_id, responses=RESPONSES)
    for router in ROUTERS:
        every.include_router(router, prefix="/v1", dependencies=[needs(Role.VIEWER)])
    every.include_router(fleet.health_router)
    every.include_router(http_agents.router)
    every.include_router(collaboration.router, dependencies=[needs(Role.VIEWER)])
    return tuple(every.routes)


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
