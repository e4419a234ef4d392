"""The route `/mcp`: the fleet as an MCP server, for callers who may submit work."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coditect.api.access.roles import Role
from coditect.api.services import ApiServices

PATH = "/mcp"


class GuardedMcp:
    """An MCP server behind the access of the API: its callers need the role operator."""

    def __init__(self, services: ApiServices, server: ASGIApp) -> None:
        self._services = services
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its caller may submit work.

        Raises:
            HTTPException: when the caller may not, or sends too many requests.
        """
        caller = await self._services.access.caller(HTTPConnection(scope))
        self._services.rates.take(caller.name)
        if not caller.role.may(Role.OPERATOR):
            raise HTTPException(403, f"This needs the role operator; {caller.name} has the role {caller.role.value}")
        await self._server(scope, receive, send)


def mcp_route(services: ApiServices, server: ASGIApp) -> Route:
    """Return the route of an MCP server."""
    return Route(PATH, GuardedMcp(services, server), include_in_schema=False)
