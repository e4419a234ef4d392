"""An agent whose capabilities are the tools of an MCP server.

The server is started as a program of its own, or reached at a URL, and opened again if it is lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from mcp import Client
from mcp.client import IncomingMessage
from mcp.client.stdio import StdioServerParameters
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolResult,
    Implementation,
    TextContent,
    Tool,
    ToolListChangedNotification,
)
from pydantic import ValidationError

from coditect import __version__
from coditect.agent.context import Context
from coditect.agent.declaration import Agent
from coditect.agent.program import run_serving, serve
from coditect.aio.supervisor import Backoff, cancellations
from coditect.aio.threads import in_thread
from coditect.errors import CoditectError, InputError, InvalidTask, Retryable, SetupError
from coditect.integrations.described import declaring
from coditect.integrations.json_schema import SchemaCheck
from coditect.model.duration import seconds
from coditect.settings.settings import Settings

log = logging.getLogger(__name__)

MCP_CONNECT_SECONDS = 30.0
"""How long a call waits for a server that is being opened."""
MCP_PROBE_SECONDS = 10.0
"""How long a server may take to list its tools after a call that it did not answer as it should."""
RESTART_PAUSES = Backoff(first=0.1, longest=10.0)
MOST_TOOLS = 200
_FINAL = frozenset({INVALID_PARAMS, METHOD_NOT_FOUND})
_PROTOCOL_CODES = range(-32_768, -31_999)
"""The codes that JSON-RPC reserves for errors of the protocol and of the server; a tool's own errors have others."""


class ToolServerLost(Retryable):
    """The retryable error of an MCP server that ended, failed or cannot be reached; it is opened again if need be."""


class ToolServer:
    """An MCP server that this process can open and call: one that a command starts, or one at a URL."""

    def __init__(self, target: str, *, env: Mapping[str, str] | None = None) -> None:
        """Take a command line, such as `mcp-server-git --repository .`, or a URL that begins with http.

        A command gets PATH, HOME and the like of this process, and `env`, and nothing else of the environment.

        Raises:
            SetupError: when the URL or the command line is malformed, or empty.
        """
        self._target = target
        self._env = dict(env or {})
        self._at: str | StdioServerParameters = target
        if target.startswith(("http://", "https://")):
            name = _without_secrets(target)
        else:
            name, *args = _words(target)
            self._at = StdioServerParameters(command=name, args=args, env=self._env or None)
        self.name = name
        """The server's address without user and query, or its program without arguments: keys may be in them."""
        self._opened: asyncio.Future[Client] | None = None
        self._suspected = asyncio.Event()
        self._trouble = ""
        self._unusable = ""
        """Why the tools that the server listed last cannot be used; empty if they can."""
        self._keeping: asyncio.Task[None] | None = None
        self.known: list[Tool] = []
        """The tools that the server had when it was last asked."""
        self.on_change: Callable[[], object] = self._log_change
        """Is called when the server has other tools than when it was last asked."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connect to the server in the background, and again after each loss, until the block ends; do not wait for it.

        Calls wait for it. Afterwards it can be opened again, also on another event loop. A block inside of another one
        uses its connection.
        """
        if self._keeping is not None and not self._keeping.done():
            yield
            return
        self._opened, self._suspected = asyncio.get_running_loop().create_future(), asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(), name=f"keep {self.name}")
        try:
            yield
        finally:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    async def tools(self) -> list[Tool]:
        """Ask the server for all of its tools, page by page, and return them.

        Raises:
            SetupError: when there are none, or too many.
            ToolServerLost: when the server does not answer.
        """
        client = await self._client()
        try:
            async with asyncio.timeout(MCP_CONNECT_SECONDS):
                self.known = await _listed(client)
        except (MCPError, TimeoutError) as error:
            raise self._judged(error, client) from error
        except ValidationError as error:
            raise SetupError("An MCP server lists an invalid tool", server=self.name, fix=_said(error)) from error
        if not 0 < len(self.known) <= MOST_TOOLS:
            raise SetupError("An MCP server has 1 to 200 tools", server=self.name, tools=len(self.known))
        return self.known

    async def call(
        self, tool: str, arguments: dict[str, Any], progress: ProgressFnT, *, limit_seconds: float = math.inf
    ) -> CallToolResult:
        """Call a tool of the server, and return its answer, even one that reports a failure; pass a cancel on.

        The answer is not compared with the tool's output schema. If the call is canceled after about `limit_seconds`,
        its time was over: the server is then probed, and replaced if it does not answer.

        Raises:
            ToolServerLost: when the server ended meanwhile, failed itself, or does not answer as it should; retryable.
            InputError: when the server has no such tool, or refuses the arguments.
        """
        client = await self._client()
        began = asyncio.get_running_loop().time()
        try:
            return await client.call_tool(tool, arguments, progress_callback=progress)
        except MCPError as error:
            raise self._judged(error, client) from error
        except ValidationError as error:
            raise ToolServerLost("The MCP server's answer is invalid", server=self.name, reason=_said(error)) from error
        except asyncio.CancelledError:
            if asyncio.get_running_loop().time() - began >= 0.9 * limit_seconds:
                self._suspect(client)
            raise

    def _judged(self, error: MCPError | TimeoutError, client: Client) -> Exception:
        """Return Coditect's error for an MCP error; unless the call itself was wrong, first suspect the connection."""
        reason = str(error)[:500] or "it does not answer"
        if isinstance(error, MCPError) and (error.code in _FINAL or error.code not in _PROTOCOL_CODES):
            return InputError("The MCP server refused the call", server=self.name, reason=reason)
        self._suspect(client)
        return ToolServerLost("The MCP server ended during the call, or failed", server=self.name, reason=reason)

    def _suspect(self, client: Client) -> None:
        """Let `_keep` probe a connection, and replace it if it is of no use; calls wait meanwhile.

        A connection that is being opened already is not probed.
        """
        if self._opened is not None and self._opened.done() and self._opened.result() is client:
            self._opened = asyncio.get_running_loop().create_future()
            self._suspected.set()

    async def _client(self) -> Client:
        if self._opened is None:
            raise SetupError("The MCP server is not open", server=self.name)
        try:
            async with asyncio.timeout(MCP_CONNECT_SECONDS):
                return await asyncio.shield(self._opened)
        except TimeoutError as error:
            reason = self._trouble or "it does not answer"
            raise ToolServerLost("The MCP server cannot be reached", server=self.name, reason=reason) from error

    async def _keep(self) -> None:
        """Keep a connection to the server until canceled: open it, and open it again whenever it fails or is lost.

        One asyncio task does all this, since only the task that opened a connection can close it. The MCP library
        cancels this task if a connection breaks, and takes that back only if the cancellation leaves its own block.
        """
        failures = 0
        while True:
            try:
                self._suspected.clear()
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(MCP_CONNECT_SECONDS):
                        client = await stack.enter_async_context(self._new_client())
                    client.session.validate_tool_result = _unchecked  # type: ignore[method-assign]
                    failures = 0
                    await self._serve(client)
            except Exception as error:
                if cancellations():
                    raise asyncio.CancelledError from error
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                self._trouble = f"{type(error).__name__}: {error}".replace(self._target, self.name)[:300]
            if self._opened is None or self._opened.done():
                self._opened = asyncio.get_running_loop().create_future()
            failures += 1
            log.warning("An MCP server is opened again", extra={"server": self.name, "reason": self._trouble})
            await asyncio.sleep(RESTART_PAUSES.pause(failures))

    def _new_client(self) -> Client:
        async def heard(message: IncomingMessage) -> None:
            if isinstance(message, ToolListChangedNotification):
                self._suspected.set()

        about = Implementation(name="coditect", version=__version__)
        return Client(self._at, client_info=about, message_handler=heard)

    async def _serve(self, client: Client) -> None:
        """Offer a connection to calls until it is of no use; probe it whenever it is suspected.

        A connection that was opened again is probed first if its tools were listed before: they may be others now.
        """
        async with asyncio.TaskGroup() as listening:
            listening.create_task(self._listen(client))
            if self.known:
                self._suspected.set()
            while True:
                if self._suspected.is_set():
                    self._suspected.clear()
                    await self._probe(client)
                assert self._opened is not None
                if not self._opened.done():
                    self._opened.set_result(client)
                await self._suspected.wait()

    async def _probe(self, client: Client) -> None:
        """List a server's tools, and report any change; raise an error if the server does not answer.

        A list that cannot be used is logged once.
        """
        found, unusable = list[Tool](), ""
        try:
            async with asyncio.timeout(MCP_PROBE_SECONDS):
                found = await _listed(client)
        except ValidationError as error:
            unusable = _said(error)
        if not (unusable or 0 < len(found) <= MOST_TOOLS):
            unusable = f"it lists more than {MOST_TOOLS} tools" if found else "it lists no tool, as while it starts"
        if unusable and unusable != self._unusable:
            facts = {"server": self.name, "reason": unusable, "fix": f"let it list 1 to {MOST_TOOLS} tools"}
            log.warning("An MCP server lists tools that cannot be used; its tools are as before", extra=facts)
        self._unusable = unusable
        if self.known and not unusable and found != self.known:
            self.known = found
            self.on_change()

    async def _listen(self, client: Client) -> None:
        """Have the tools listed again when the server says that they changed, in the protocol that has subscriptions.

        In older ones the message handler hears of it.
        """
        with suppress(ListenNotSupportedError, SubscriptionLost, MCPError, TimeoutError):
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._suspected.set()

    def _log_change(self) -> None:
        fix = "start the agent again; `coditect agent run --mcp` does that by itself"
        log.warning("An MCP server has other tools now", extra={"server": self.name, "fix": fix})


def _without_secrets(url: str) -> str:
    """Return a server's URL without user and query, in which keys are.

    Raises:
        SetupError: when it is no URL.
    """
    try:
        parts, _ = urlsplit(url), urlsplit(url).port
    except ValueError:
        parts = urlsplit("")
    if not parts.hostname:  # what urllib says may hold the password
        fix = "--mcp https://tools.example.com/mcp, with user and password percent-encoded"
        raise SetupError("The URL of an MCP server is malformed", fix=fix)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SetupError("The command line of an MCP server has no end", fix=str(error)) from error
    if not words:
        raise SetupError("An MCP server needs a command", fix="--mcp 'mcp-server-git --repository .'")
    return words


async def _listed(client: Client) -> list[Tool]:
    """Return a server's tools, page by page, a few more than `MOST_TOOLS` if there are too many."""
    tools, cursor = list[Tool](), None
    while len(tools) <= MOST_TOOLS:
        page = await client.list_tools(cursor=cursor, cache_mode="refresh")
        tools += page.tools
        if not (cursor := page.next_cursor):
            break
    return tools


def _said(error: ValidationError) -> str:
    """Return the first fields of a server's answer that are wrong, and why."""
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:3])[:500]


async def _unchecked(name: str, result: CallToolResult) -> None:
    """Accept every answer of a tool, in place of the MCP library's check against the tool's output schema.

    In that check a regular expression from the server could block the event loop.
    """


_UNFIT = re.compile(r"[^a-z0-9_-]+")
TOOL_TIMEOUT = "5m"
_RENAME = "rename the tool, or take a shorter name for the agent"


class ToolFailed(Retryable):
    """The error of an MCP tool that reports a failure, or breaks its output schema; another attempt may succeed."""


async def mcp_agent(
    name: str,
    target: str,
    *,
    prefix: str | None = None,
    slots: int = 8,
    timeout: str = TOOL_TIMEOUT,
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
    return await in_thread(partial(agent_of, name, server, tools, prefix=prefix or name, slots=slots, timeout=timeout))


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
            agent = await in_thread(partial(agent_of, name, server, server.known, prefix=name))
            ended = await serve(agent, settings, renew=renew)


def agent_of(
    name: str, server: ToolServer, tools: Sequence[Tool], *, prefix: str, slots: int = 8, timeout: str = TOOL_TIMEOUT
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

    agent = Agent(name, slots=slots, lifespan=lifespan, description=f"The tools of an MCP server: {server.name}")
    names: dict[str, str] = {}
    for tool in tools:
        capability = f"{prefix}.{_UNFIT.sub('-', tool.name.lower()).strip('-_') or 'tool'}"
        try:
            if (other := names.setdefault(capability, tool.name)) != tool.name:
                raise SetupError("Another tool has the name of this capability already", other=other)
            declare = agent.capability(capability, timeout=timeout, description=(tool.description or tool.name)[:1_000])
            declare(_handler(server, tool, seconds(timeout)))
        except CoditectError as error:
            facts = {"tool": tool.name[:200], "capability": capability[:200], "reason": str(error), "fix": _RENAME}
            log.warning("A tool of an MCP server is left out: it cannot be a capability", extra=facts)
    if not agent.capabilities:
        raise SetupError("No tool of an MCP server can be a capability", server=server.name, fix=_RENAME)
    return agent


def _handler(server: ToolServer, tool: Tool, limit_seconds: float) -> Callable[..., Any]:
    check = _check_of(tool)

    async def call(value: Any, ctx: Context) -> Any:
        async def progress(progress: float, total: float | None, message: str | None) -> None:
            await ctx.progress(progress / total if total else 0.0, message or "")

        arguments = {} if value is None else value if isinstance(value, dict) else {"input": value}
        result = await server.call(tool.name, arguments, progress, limit_seconds=limit_seconds)
        answer = value_of(result)
        if check is not None:
            await in_thread(partial(_compare, result, check))  # a large answer takes seconds
        return answer

    return declaring(call, tool.input_schema, check and tool.output_schema)


def _check_of(tool: Tool) -> SchemaCheck | None:
    """Return the check of a tool's answers by its output schema; None without a schema, or with an unusable one."""
    try:
        return None if tool.output_schema is None else SchemaCheck(tool.output_schema)
    except SetupError as error:
        facts = {"tool": tool.name, "reason": str(error)}
        log.warning("A tool's answers are not compared with its output schema, which is not shown", extra=facts)
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
    texts = [part.text for part in result.content if isinstance(part, TextContent)]
    if result.is_error:
        raise ToolFailed("\n".join(texts)[:4_000] or "The tool failed")
    if result.structured_content is not None:
        return result.structured_content
    if len(result.content) == 1 and texts:
        return texts[0]
    return [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in result.content]
