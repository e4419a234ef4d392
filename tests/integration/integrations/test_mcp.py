"""MCP both ways on real servers: a server's tools as capabilities, offered again as tools to the SDK's own client."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client as McpClient
from mcp.client.stdio import StdioServerParameters

from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, open_fleet
from tests.integration.api.test_api_program import served
from tests.servers import ROOT, Servers
from tests.support import eventually

pytestmark = pytest.mark.servers

SERVER = ROOT / "tests" / "unit" / "integrations" / "mcp" / "tool_server.py"


def over_stdio(fleet: Fleet) -> McpClient:
    """A client that starts `coditect api mcp`."""
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "coditect", "api", "mcp"], env=fleet.environment()
    )
    return McpClient(command)


async def structured(client: McpClient, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def test_tools_are_called_canceled_and_asked_for_later_over_another_connection(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        tools = f"{sys.executable} {SERVER} {tmp_path}"
        await fleet.run("coditect", "agent", "run", "--name", "letters", "--mcp", tools)

        async with over_stdio(fleet) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            counted = await structured(client, "letters_count", text="hello")

            stalling = asyncio.create_task(client.call_tool("letters_stall", {"text": ""}))
            await eventually((tmp_path / "stalled").exists)
            stalling.cancel()
            await eventually((tmp_path / "canceled").exists)

            order = {"capability": "letters.count", "arguments": {"text": "later"}}
            accepted = await structured(client, "coditect_submit", **order)

        urls = Servers(own_servers.amqp_url, own_servers.redis_url)
        async with served(urls, tmp_path) as api, McpClient(f"{str(api.http.base_url).rstrip('/')}/mcp") as other:
            ended = await structured(other, "coditect_task", task=accepted["task"], wait_seconds=30)

    assert "letters_count" in names
    assert counted == {"result": 5}
    assert ended["result"] == {"result": 5}
