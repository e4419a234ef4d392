"""An MCP server for tests: counts letters, once dies during a call, and promises what it does not keep."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

FOLDER = Path(sys.argv[1])
server = MCPServer("letters")


@server.tool()
def count(text: str) -> int:
    """Count the letters of a text."""
    if not text:
        raise ToolError("there are no letters")
    return len(text)


@server.tool(structured_output=False)
def shout(text: str) -> str:
    """Return a text in capitals."""
    return text.upper()


@server.tool()
def die_once(text: str) -> int:
    """Count the letters of a text, but end the process at the first call."""
    if not (FOLDER / "died").exists():
        (FOLDER / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return len(text)


@server.tool()
def only_a(text: str) -> Annotated[str, Field(json_schema_extra={"pattern": "^(a+)+$"})]:
    """Return the text, whatever letters it has."""
    return text


@server.tool()
def not_a(text: str) -> Annotated[str, Field(json_schema_extra={"pattern": "^(?!a)"})]:
    """Return the text, whatever letters it has."""
    return text


@server.tool()
async def stall(text: str) -> None:
    """Wait until the call is canceled."""
    (FOLDER / "stalled").touch()
    try:
        await asyncio.Event().wait()
    finally:
        (FOLDER / "canceled").touch()


if __name__ == "__main__":
    (FOLDER / "pid").write_text(str(os.getpid()))
    server.run("stdio")
