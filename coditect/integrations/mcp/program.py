"""The MCP server of a fleet as it is served: to one client over stdin and stdout, or to many over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from coditect.integrations.mcp.serving import fleet_server
from coditect.operations.connections import Connections


async def serve_stdio(opened: Connections, patterns: Sequence[str]) -> None:
    """Serve one MCP client over stdin and stdout until it closes them."""
    server = fleet_server(opened, patterns)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


@asynccontextmanager
async def open_http(opened: Connections, *, most_bytes: int) -> AsyncIterator[StreamableHTTPSessionManager]:
    """Yield a manager to which the caller passes the HTTP requests of MCP clients; it answers while the block lasts.

    There are no sessions, so that any API process can answer any request. The caller has checked who asks, and from
    which host: nothing of that is checked here.
    """
    manager = StreamableHTTPSessionManager(fleet_server(opened), stateless=True, max_request_body_size=most_bytes)
    async with manager.run():
        yield manager
