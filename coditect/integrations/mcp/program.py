"""The programs of MCP: the fleet as a server, over stdin and stdout or over HTTP, and a server's tools as an agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from coditect.agent.program import run_serving, serve
from coditect.integrations.mcp.declaration import agent_of
from coditect.integrations.mcp.servers import ToolServer
from coditect.integrations.mcp.serving import fleet_server
from coditect.operations.connections import Connections
from coditect.settings.settings import Settings

IDLE_SECONDS = 600.0
MOST_SESSIONS = 1_000


async def serve_stdio(opened: Connections, patterns: Sequence[str]) -> None:
    """Serve one MCP client over stdin and stdout until it closes them."""
    server = fleet_server(opened, patterns)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


@asynccontextmanager
async def open_http(opened: Connections, *, most_bytes: int) -> AsyncIterator[StreamableHTTPSessionManager]:
    """Yield a manager to which the caller passes the HTTP requests of MCP clients; it answers while the block lasts.

    The caller has checked who asks, and from which host: nothing of that is checked here.
    """
    manager = StreamableHTTPSessionManager(
        fleet_server(opened),
        session_idle_timeout=IDLE_SECONDS,
        max_sessions=MOST_SESSIONS,
        max_request_body_size=most_bytes,
    )
    async with manager.run():
        yield manager


def run_tools(name: str, target: str, settings: Settings) -> int:
    """Run the agent whose capabilities are the tools of an MCP server until it is stopped, and return the exit code.

    Raises:
        SetupError: when the server's command cannot be used, or no tool can be declared.
        ToolServerLost: when the server does not answer within 30 s; retryable.
    """
    return run_serving(_serve_tools(name, ToolServer(target), settings), settings)


async def _serve_tools(name: str, server: ToolServer, settings: Settings) -> None:
    """Serve a server's tools; when they change, drain the agent, and serve an agent with the new ones."""
    ended = False
    async with server.open():
        await server.tools()
        while not ended:
            renew = asyncio.Event()
            server.on_change = renew.set
            ended = await serve(agent_of(name, server, server.known, prefix=name), settings, renew=renew)
