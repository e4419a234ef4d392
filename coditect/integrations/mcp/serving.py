"""The fleet as an MCP server: each capability is a tool; dead letters and workflows are resources.

A call is a direct task: its progress is the call's, and a canceled call cancels it. What runs longer than a call should
wait is a durable task: `coditect_submit` accepts one, `coditect_task` has its state and value, later and from any
connection, and `coditect_cancel` cancels it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Tool,
    ToolAnnotations,
)

from coditect import __version__
from coditect.aio.clock import SystemClock
from coditect.client.client import Client
from coditect.client.options import Options, RequestKey
from coditect.errors import CoditectError, InputError, NotFound, ResultTimeout, TaskError
from coditect.integrations.mcp.resources import FleetResources
from coditect.integrations.mcp.tools import TASK_SCHEMA, CapabilityTool, answer, capability_tools, refusal
from coditect.integrations.tools import OfferedCapabilities, own_key
from coditect.model.capability import LONGEST_DIRECT_SECONDS, nearest_names
from coditect.model.event import Event
from coditect.model.ids import TaskId
from coditect.operations.connections import Connections
from coditect.operations.fleet import find_agents

SUBMIT, LOOK, CANCEL = "coditect_submit", "coditect_task", "coditect_cancel"
LOCAL = "local"
"""The caller over stdin and stdout, whom the API does not know."""
MOST_WAIT_SECONDS = 30.0
"""The longest wait of `coditect_task`: clients give a call up after about a minute."""
INSTRUCTIONS = (
    "The tools are the capabilities of a fleet of agents. For work that takes minutes, use coditect_submit and ask "
    "coditect_task for the result later."
)
Progress = Callable[[float, str], Awaitable[None]]
"""Is called with the share of the work that is done, 0 to 1, and a note."""
_TASK = {"task": {"type": "string", "description": "The id that coditect_submit gave."}}
_DURABLE_TOOLS = (
    Tool(
        name=SUBMIT,
        description="Submit a durable task to a capability of the fleet, and return its id at once.",
        input_schema={
            "type": "object",
            "properties": {
                "capability": {"type": "string", "description": "The capability, or the name of its tool."},
                "arguments": {"type": "object", "description": "The arguments that its tool takes."},
                "key": {
                    "type": "string",
                    "description": "An idempotency key: the same key and input give the same task.",
                },
            },
            "required": ["capability"],
        },
        output_schema=TASK_SCHEMA,
    ),
    Tool(
        name=LOOK,
        description="Return the state of a durable task, and its value or error once it has ended.",
        input_schema={
            "type": "object",
            "properties": _TASK
            | {"wait_seconds": {"type": "number", "minimum": 0, "maximum": MOST_WAIT_SECONDS, "default": 0}},
            "required": ["task"],
        },
        output_schema=TASK_SCHEMA,
        annotations=ToolAnnotations(read_only_hint=True),
    ),
    Tool(
        name=CANCEL,
        description="Cancel a durable task.",
        input_schema={"type": "object", "properties": _TASK, "required": ["task"]},
        output_schema=TASK_SCHEMA,
        annotations=ToolAnnotations(idempotent_hint=True),
    ),
)


class FleetTools:
    """The MCP tools of a fleet: one for each JSON capability of living agents with an allowed name, and three more.

    The three submit, look at and cancel durable tasks. A name is allowed if it fits a pattern, such as `code.*`.
    """

    def __init__(self, opened: Connections, patterns: Sequence[str] = ("*",)) -> None:
        """Serve the fleet's capabilities that match the given patterns, such as `code.*`, as tools."""
        self._opened = opened
        self._offers = OfferedCapabilities(partial(find_agents, opened))
        self._patterns = tuple(patterns)

    async def listed(self) -> list[Tool]:
        """Return all MCP tools of the fleet, by the capabilities that the registry had at most a second ago.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        return [*(tool.described for tool in (await self._offered()).values()), *_DURABLE_TOOLS]

    async def call(
        self, name: str, arguments: Mapping[str, Any], progress: Progress, *, caller: str = LOCAL
    ) -> CallToolResult:
        """Call a tool; answer with its value or error, or, if it may run over 10 minutes, with a durable task's id.

        Idempotency keys are those of the `caller`.

        Raises:
            MCPError: when there is no such tool, or the caller used a key for another request before.
        """
        try:
            if name == SUBMIT:
                return await self._submit(arguments, caller)
            if name in (LOOK, CANCEL):
                return await self._of_task(name, arguments)
            tool = await self._tool(name)
            if tool.spec.long:
                return await self._accept(tool, arguments)
            return await self._run(tool, arguments, progress)
        except CoditectError as error:
            return refusal(error)

    async def _offered(self) -> dict[str, CapabilityTool]:
        offers = await self._offers.as_tools()
        return capability_tools(spec for name, spec in offers.items() if self._allows(name))

    def _allows(self, capability: str) -> bool:
        return any(fnmatchcase(capability, pattern) for pattern in self._patterns)

    async def _tool(self, name: str) -> CapabilityTool:
        offered = await self._offered()
        found = offered.get(name) or next((one for one in offered.values() if one.spec.name == name), None)
        if found is None:
            near = ", ".join(nearest_names(name, offered)) or "tools/list has all"
            raise MCPError(INVALID_PARAMS, f"No living agent offers the tool {name[:200]!r}; nearest: {near}")
        return found

    async def _run(self, tool: CapabilityTool, arguments: Mapping[str, Any], progress: Progress) -> CallToolResult:
        task_id = TaskId(SystemClock().new_id())  # known before, so that its first event is heard, too
        async with self._opened.client() as client, _told(client, task_id, progress):
            handle = await client.submit(tool.spec.name, tool.input_of(arguments), task_id=task_id)
            try:
                return tool.answer(await handle.result(timeout=f"{LONGEST_DIRECT_SECONDS:.0f}s"))
            except asyncio.CancelledError:
                await asyncio.shield(handle.cancel(reason="its MCP client canceled the call"))
                raise
            finally:
                handle.forget()

    async def _submit(self, arguments: Mapping[str, Any], caller: str) -> CallToolResult:
        given = arguments.get("arguments") or {}
        if not isinstance(given, dict):
            raise InputError("The arguments of a tool are an object", given=type(given).__name__)
        tool = await self._tool(_text(arguments, "capability"))
        if arguments.get("key") is None:
            return await self._accept(tool, given)
        return await self._accept(tool, given, own_key("mcp", caller, _text(arguments, "key"), [tool.spec.name, given]))

    async def _accept(
        self, tool: CapabilityTool, arguments: Mapping[str, Any], key: RequestKey | None = None
    ) -> CallToolResult:
        options = Options(durable=True, idempotency_key=key)
        async with self._opened.fleet() as client:
            try:
                handle = await client.submit_durable(tool.spec.name, tool.input_of(arguments), options=options)
            except InputError as error:
                raise (error if key is None else MCPError(INVALID_PARAMS, str(error))) from error
            return answer({"task": handle.task_id, "state": "accepted"})

    async def _of_task(self, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
        async with self._opened.fleet() as client:
            handle = client.task(_text(arguments, "task"))
            if not self._allows((await handle.row()).capability):  # whoever may do some of the work has no say in other
                raise NotFound("There is no such task of these tools", task=handle.task_id)
            if name == CANCEL:
                await handle.cancel(reason="canceled by an MCP client")
            wait = arguments.get("wait_seconds") or 0
            if not isinstance(wait, int | float) or not 0 <= wait <= MOST_WAIT_SECONDS:
                raise InputError("There is no such wait", wait_seconds=wait, fix=f"0 to {MOST_WAIT_SECONDS:.0f}")
            told: dict[str, Any] = {"task": handle.task_id}
            try:
                told["result"] = await handle.result(timeout=f"{max(1, round(wait * 1000))}ms")
            except ResultTimeout:
                pass
            except TaskError as error:
                told["error"] = error.sentence
            return answer(told | {"state": (await handle.row()).state.value})


@asynccontextmanager
async def _told(client: Client, task_id: TaskId, progress: Progress) -> AsyncIterator[None]:
    """Pass a task's progress reports, as they arrive, to the function `progress` while the block lasts."""
    async with client.events("task.progress", of=task_id) as events:
        telling = asyncio.create_task(_tell(events, progress))
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.wait([telling])


async def _tell(events: AsyncIterator[Event], progress: Progress) -> None:
    """Pass progress on as MCP wants it, always more than before: a retried attempt begins anew, and notes may repeat.

    The least that is more goes with a note of no new share.
    """
    last = -1.0
    async for event in events:
        share, note = float(event.data.get("share") or 0.0), str(event.data.get("note") or "")
        if share <= last and note:
            share = min(1.0, math.nextafter(last, math.inf))
        if share > last:
            last = share
            await progress(share, note)


def _text(arguments: Mapping[str, Any], name: str) -> str:
    given = arguments.get(name)
    if not isinstance(given, str) or not given:
        raise InputError("An argument of the tool is missing", argument=name, fix=f"{name}: a text")
    return given


def fleet_server(opened: Connections, patterns: Sequence[str] = ("*",)) -> Server[Any]:
    """Return the MCP server of a fleet: its capabilities whose names match a pattern as tools, and its resources."""
    tools, resources = FleetTools(opened, patterns), FleetResources(opened)

    async def list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=await tools.listed())

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        async def progress(share: float, note: str) -> None:
            await context.session.report_progress(share, 1.0, note or None)

        caller = LOCAL if context.request is None else context.request.state.caller.name
        return await tools.call(params.name, params.arguments or {}, progress, caller=caller)

    async def list_resources(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListResourcesResult:
        return ListResourcesResult(resources=await resources.listed())

    async def list_templates(
        _: ServerRequestContext[Any], __: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=resources.templates())

    async def read_resource(_: ServerRequestContext[Any], params: ReadResourceRequestParams) -> ReadResourceResult:
        return await resources.read(str(params.uri))

    return Server(
        "coditect",
        version=__version__,
        title="Coditect",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )
