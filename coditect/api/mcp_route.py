"""The route `/mcp`: the fleet as an MCP server, for callers who may submit work."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coditect.api.access.roles import Role
from coditect.api.services import caller_of, check_role

PATH = "/mcp"


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
    return Route(PATH, GuardedMcp(server), include_in_schema=False)
