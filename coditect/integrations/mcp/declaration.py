"""An agent whose capabilities are the tools of an MCP server."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mcp_types import CallToolResult, TextContent, Tool

from coditect.agent.declaration import Agent
from coditect.agent.handlers.context import Context
from coditect.agent.program import run_serving, serve
from coditect.errors import CoditectError, InvalidTask, Retryable, SetupError
from coditect.integrations.described import described
from coditect.integrations.json_schema import SchemaCheck
from coditect.integrations.mcp.servers import ToolServer
from coditect.model.duration import seconds
from coditect.settings.settings import Settings

log = logging.getLogger(__name__)

_UNFIT = re.compile(r"[^a-z0-9_-]+")
DEFAULT_TIMEOUT = "5m"
_RENAME = "rename the tool, or take a shorter name for the agent"


class ToolFailed(Retryable):
    """The error of an MCP tool that reports a failure, or breaks its output schema; another attempt may succeed."""


async def mcp_agent(
    name: str,
    target: str,
    *,
    prefix: str | None = None,
    slots: int = 8,
    timeout: str = DEFAULT_TIMEOUT,
    env: Mapping[str, str] | None = None,
) -> Agent:
    """Return an agent with a capability for each tool of an MCP server, such as `git.git_status`.

    The server is asked for its tools now, and opened again when the agent starts. `prefix` comes before each tool's
    name, the agent's name by default; `timeout` bounds one call.

    Raises:
        SetupError: when the server's command cannot be used, or no tool can be a capability.
        ToolServerLost: when the server does not answer within 30 s; retryable.
    """
    server = ToolServer(target, env=env)
    async with server.open():
        tools = await server.tools()
    return agent_of(name, server, tools, prefix=prefix or name, slots=slots, timeout=timeout)


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


def agent_of(
    name: str, server: ToolServer, tools: Sequence[Tool], *, prefix: str, slots: int = 8, timeout: str = DEFAULT_TIMEOUT
) -> Agent:
    """Return the agent whose capabilities are the given tools of an MCP server.

    A tool that cannot be a capability, such as one with too long a name, is left out and logged.

    Raises:
        SetupError: when no tool is left.
    """

    @asynccontextmanager
    async def lifespan(_: Agent) -> AsyncIterator[None]:
        async with server.open():
            yield

    agent = Agent(name, slots=slots, lifespan=lifespan, description=f"The tools of an MCP server: {server.target}")
    names: dict[str, str] = {}
    for tool in tools:
        capability = f"{prefix}.{_UNFIT.sub('-', tool.name.lower()).strip('-_') or 'tool'}"
        try:
            if (other := names.setdefault(capability, tool.name)) != tool.name:
                raise SetupError("Another tool has the name of this capability already", other=other)
            declare = agent.capability(capability, timeout=timeout, description=(tool.description or tool.name)[:1_000])
            declare(_handler(server, tool, seconds(timeout)))
        except CoditectError as error:
            told = {"tool": tool.name[:200], "capability": capability[:200], "reason": str(error), "fix": _RENAME}
            log.warning("A tool of an MCP server is left out: it cannot be a capability", extra=told)
    if not agent.capabilities:
        raise SetupError("No tool of an MCP server can be a capability", server=server.target, fix=_RENAME)
    return agent


def _handler(server: ToolServer, tool: Tool, limit_seconds: float) -> Callable[..., Any]:
    check = _check_of(tool)

    async def call(arguments: Any, ctx: Context) -> Any:
        async def progress(progress: float, total: float | None, message: str | None) -> None:
            await ctx.progress(progress / total if total else 0.0, message or "")

        given = {} if arguments is None else arguments
        if not isinstance(given, dict):
            given = {"input": given}
        result = await server.call(tool.name, given, progress, limit_seconds=limit_seconds)
        value = value_of(result)
        if check is not None:
            _compare(result, check)
        return value

    call.__annotations__ = {
        "arguments": described(tool.input_schema),
        "ctx": Context,
        "return": described(tool.output_schema or {} if check else {}),
    }
    return call


def _check_of(tool: Tool) -> SchemaCheck | None:
    """Return the check of a tool's answers by its output schema; None without a schema, or with an unusable one."""
    try:
        return None if tool.output_schema is None else SchemaCheck(tool.output_schema)
    except SetupError as error:
        told = {"tool": tool.name, "reason": str(error)}
        log.warning("A tool's answers are not compared with its output schema, which is not shown", extra=told)
        return None


def _compare(result: CallToolResult, check: SchemaCheck) -> None:
    if "structured_content" not in result.model_fields_set:
        raise ToolFailed("The tool has an output schema, and answered without structured content")
    try:
        check.check(result.structured_content)
    except InvalidTask as error:
        raise ToolFailed(f"The tool's answer does not fit its output schema: {error}"[:4_000]) from error


def value_of(result: CallToolResult) -> Any:
    """Return the value of a tool's answer: its structured content, else its only text, else its parts as JSON.

    Raises:
        ToolFailed: when the answer says so.
    """
    texts = [one.text for one in result.content if isinstance(one, TextContent)]
    if result.is_error:
        raise ToolFailed("\n".join(texts)[:4_000] or "The tool failed")
    if result.structured_content is not None:
        return result.structured_content
    if len(result.content) == 1 and texts:
        return texts[0]
    return [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in result.content]
