"""An MCP server that this process calls: started as a program of its own, or reached at a URL; opened again if lost."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, CallToolResult, Implementation, Tool

from coditect import __version__
from coditect.aio.backoff import Backoff
from coditect.errors import InputError, Retryable, SetupError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 30.0
"""How long a call waits for a server that is being opened."""
PAUSES = Backoff(first=0.1, longest=10.0)
MOST_TOOLS = 200


class ToolServerLost(Retryable):
    """The retryable error of an MCP server that ended or cannot be reached; it is opened again in the background."""


class ToolServer:
    """An MCP server that this process can open and call: one that a command starts, or one at a URL."""

    def __init__(self, target: str, *, env: Mapping[str, str] | None = None) -> None:
        """Take a command line, such as `mcp-server-git --repository .`, or a URL that begins with http.

        A command gets PATH, HOME and the like of this process, and `env`, and nothing else of the environment.

        Raises:
            SetupError: when the command line is empty, or its quotes do not match.
        """
        self.target = target
        self._env = dict(env or {})
        self._at: str | StdioServerParameters = target
        if not target.startswith(("http://", "https://")):
            try:
                words = shlex.split(target)
            except ValueError as error:
                raise SetupError(
                    "The command line of an MCP server has no end", given=target, fix=str(error)
                ) from error
            if not words:
                raise SetupError("An MCP server needs a command", fix="--mcp 'mcp-server-git --repository .'")
            self._at = StdioServerParameters(command=words[0], args=words[1:], env=self._env or None)
        self._opened: asyncio.Future[Client] | None = None
        self._lost = asyncio.Event()
        self._trouble = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connect to the server in the background, and again after each loss, until the block ends; do not wait for it.

        Calls wait for it. Afterwards it can be opened again, also on another event loop.
        """
        self._opened, self._lost = asyncio.get_running_loop().create_future(), asyncio.Event()
        keeping = asyncio.create_task(self._keep(), name=f"keep {self.target}")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def tools(self) -> list[Tool]:
        """Ask the server for all of its tools, page by page, and return them.

        Raises:
            SetupError: when there are none, or too many.
            ToolServerLost: when the server does not answer.
        """
        client, tools, cursor = await self._client(), list[Tool](), None
        while len(tools) <= MOST_TOOLS:
            try:
                page = await client.list_tools(cursor=cursor)
            except MCPError as error:
                raise self._judged(error, client) from error
            tools += page.tools
            if not (cursor := page.next_cursor):
                break
        if not 0 < len(tools) <= MOST_TOOLS:
            raise SetupError("An MCP server has 1 to 200 tools", server=self.target, tools=len(tools))
        return tools

    async def call(self, tool: str, arguments: dict[str, Any], progress: ProgressFnT) -> CallToolResult:
        """Call a tool of the server, and return its answer, even one that reports a failure; pass a cancel on.

        The answer is not compared with the tool's output schema.

        Raises:
            ToolServerLost: when the server ended meanwhile, or does not answer; retryable.
            InputError: when the server has no such tool, or refuses the arguments.
        """
        client = await self._client()
        try:
            return await client.call_tool(tool, arguments, progress_callback=progress)
        except MCPError as error:
            raise self._judged(error, client) from error

    def _judged(self, error: MCPError, client: Client) -> Exception:
        """Return Coditect's error for an MCP error; if the connection was closed, first make `_keep` open a new one.

        A connection that is being opened already is not replaced once more.
        """
        if error.code == CONNECTION_CLOSED:
            if self._opened is not None and self._opened.done() and self._opened.result() is client:
                self._opened = asyncio.get_running_loop().create_future()
                self._lost.set()
            return ToolServerLost("The MCP server ended during the call", server=self.target)
        return InputError("The MCP server refused the call", server=self.target, reason=str(error)[:500])

    async def _client(self) -> Client:
        if self._opened is None:
            raise SetupError("The MCP server is not open", server=self.target)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.shield(self._opened)
        except TimeoutError as error:
            reason = self._trouble or "it does not answer"
            raise ToolServerLost("The MCP server cannot be reached", server=self.target, reason=reason) from error

    async def _keep(self) -> None:
        """Keep a connection to the server until canceled: open it, and open it again whenever it fails or is lost.

        One asyncio task does all this, since only the task that opened a connection can close it.
        """
        failures = 0
        while True:
            self._lost.clear()
            try:
                async with Client(self._at, client_info=Implementation(name="coditect", version=__version__)) as client:
                    client.session.validate_tool_result = _unchecked  # type: ignore[method-assign]
                    failures = 0
                    assert self._opened is not None
                    self._opened.set_result(client)
                    await self._lost.wait()
            except Exception as error:  # noqa: BLE001 - whatever a server's program does; a call has it as its reason
                self._trouble = f"{type(error).__name__}: {error}"[:300]
            failures += 1
            log.warning("An MCP server is opened again", extra={"server": self.target, "reason": self._trouble})
            await asyncio.sleep(PAUSES.pause(failures))


async def _unchecked(name: str, result: CallToolResult) -> None:
    """Accept every answer of a tool, in place of the MCP library's check against the tool's output schema.

    In that check a regular expression from the server could block the event loop.
    """
