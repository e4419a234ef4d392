"""The fleet as an MCP server: each capability is a tool; dead letters and workflows are resources.

A call is a direct task: its progress is the call's, and a canceled call cancels it. What runs longer than a call should
wait is a durable task: `coditect_submit` accepts one, `coditect_task` has its state and value, later and from any
connection, and `coditect_cancel` cancels it.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from typing import Any

from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
)

from coditect import __version__
from coditect.aio.clock import SystemClock
from coditect.client.client import Client
from coditect.client.options import Options, RequestKey
from coditect.codec import is_binary
from coditect.errors import CoditectError, InputError, NotFound, ResultTimeout, TaskError
from coditect.integrations.tools import INPUT, OfferedCapabilities, as_object, input_of, is_object, is_portable, own_key
from coditect.model.capability import LONGEST_DIRECT_SECONDS, CapabilitySpec, nearest_names
from coditect.model.ids import TaskId
from coditect.model.message import Event
from coditect.operations import dead_letters, workflows
from coditect.operations.connections import Connections
from coditect.operations.dead_letters import Selection
from coditect.operations.documents import DeadNodeDocument, LetterDocument, WholeLetter
from coditect.operations.fleet import find_agents
from coditect.wire.json import dumps

RESULT_FIELD = "result"
SUBMIT, LOOK, CANCEL = "coditect_submit", "coditect_task", "coditect_cancel"
_BUILT_IN = frozenset({SUBMIT, LOOK, CANCEL})
_HASHED = re.compile(r"_[0-9a-f]{8}$")
"""The suffix of a tool's name; a capability's own name that ends like this has one, too, so that no two are alike."""
TASK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "task": {"type": "string", "description": "The id of the durable task."},
        "state": {"type": "string"},
        "result": {"description": "The value, once the task is completed."},
        "error": {"type": "string", "description": "Why it ended without a value."},
    },
    "required": ["task", "state"],
}
"""The JSON Schema of what is told about a durable task."""


@dataclass(frozen=True, slots=True)
class CapabilityTool:
    """A capability as an MCP tool: the tool's name, and the capability's specification."""

    name: str
    spec: CapabilitySpec

    @property
    def described(self) -> Tool:
        """The tool's description for MCP clients; one that may run over ten minutes answers with a durable task."""
        spec = self.spec
        later = " Takes long: answers with a task, whose result coditect_task has later." if spec.long else ""
        return Tool(
            name=self.name,
            title=spec.name,
            description=(spec.description or f"The capability {spec.name} of the fleet.") + later,
            input_schema=as_object(spec.input_schema, INPUT),
            output_schema=TASK_SCHEMA if spec.long else _output_schema(spec),
        )

    def answer(self, value: Any) -> CallToolResult:
        """Return the MCP answer with a task's value; a value that is no object by schema becomes the field `result`."""
        is_whole = is_object(self.spec.output_schema) and isinstance(value, dict)
        structured = value if is_whole else {RESULT_FIELD: value}
        return answer(structured, text=value if isinstance(value, str) else None)


def capability_tools(specs: Iterable[CapabilitySpec]) -> dict[str, CapabilityTool]:
    """Return the tools of capabilities by name: `code_review` for `code.review`, since many clients allow no dots.

    Capabilities whose names would collide, with each other or with a built-in tool, get a suffix: a hash of their own
    name. So a tool's name never moves to another capability when one appears. Capabilities that take or return bytes
    are left out: MCP's arguments are JSON.
    """
    offered = [spec for spec in specs if not (is_binary(spec.input_schema) or is_binary(spec.output_schema))]
    uses = Counter(map(_short, offered))
    tools: dict[str, CapabilityTool] = {}
    for spec in sorted(offered, key=lambda spec: spec.name):
        name = _short(spec)
        if uses[name] > 1 or name in _BUILT_IN or _HASHED.search(name):
            name = f"{name}_{sha256(spec.name.encode()).hexdigest()[:8]}"
        tools[name] = CapabilityTool(name, spec)
    return tools


def _short(spec: CapabilitySpec) -> str:
    return spec.name.replace(".", "_")


def answer(structured: Mapping[str, Any], *, text: str | None = None) -> CallToolResult:
    """Return the answer of an MCP call as structured content, and as text for clients that read only text."""
    content = dumps(structured).decode() if text is None else text
    return CallToolResult(content=[TextContent(text=content)], structured_content=dict(structured))


def refusal(error: CoditectError) -> CallToolResult:
    """Return the answer of a failed MCP call: the error's sentence and facts, such as a fix, for a model to read."""
    facts = "".join(f"; {name}: {value}" for name, value in error.facts.items() if name != "traceback")
    return CallToolResult(content=[TextContent(text=f"{error.sentence}{facts}"[:4_000])], is_error=True)


def _output_schema(spec: CapabilitySpec) -> dict[str, Any] | None:
    """Return a tool's output schema without patterns, whose dialects differ; None if not all clients could read it."""
    schema = as_object(spec.output_schema, RESULT_FIELD, without=("pattern",))
    return schema if spec.output_schema and is_portable(schema) else None


SCHEME = "coditect://"
WORKFLOWS_URI, DEAD = f"{SCHEME}workflows", f"{SCHEME}dead"
MAX_LISTED = 100
"""How many workflows or dead letters a listing has."""
JSON = "application/json"


class FleetResources:
    """The MCP resources of a fleet: its workflows and its dead letters, listed and read one by one."""

    def __init__(self, opened: Connections) -> None:
        self._opened = opened

    async def listed(self, *_: object) -> ListResourcesResult:
        """Return the descriptions of two MCP resources: the list of the latest workflows, and that of dead letters.

        A single workflow or dead letter is read at an address that `templates` describes.
        """
        work = Resource(name="workflows", uri=WORKFLOWS_URI, description="The latest workflows.", mime_type=JSON)
        dead = Resource(name="dead letters", uri=DEAD, description="Tasks that were given up.", mime_type=JSON)
        return ListResourcesResult(resources=[work, dead])

    async def templates(self, *_: object) -> ListResourceTemplatesResult:
        """Return the URI templates by which an MCP client reads one workflow, or one dead letter, by its id."""
        about = [
            ("workflow", f"{WORKFLOWS_URI}/{{workflow}}", "A workflow with its nodes."),
            ("dead letter", f"{DEAD}/{{id}}", "A dead letter: its reason, its attempts and its body."),
        ]
        templates = [
            ResourceTemplate(name=name, uri_template=uri, description=text, mime_type=JSON) for name, uri, text in about
        ]
        return ListResourceTemplatesResult(resource_templates=templates)

    async def read(self, context: ServerRequestContext[Any], params: ReadResourceRequestParams) -> ReadResourceResult:
        """Return the MCP resource at an address as JSON: a list, or one workflow or dead letter.

        Raises:
            MCPError: when there is no such resource (-32602), or the fleet does not answer (-32603); the message says
                what to do.
        """
        uri = str(params.uri)
        kind, _, key = uri.removeprefix(SCHEME).partition("/")
        try:
            if uri.startswith(WORKFLOWS_URI) and kind == "workflows":
                document = await self._workflow(key) if key else await self._workflows()
            elif uri.startswith(DEAD) and kind == "dead":
                document = await self._letter(key) if key else await self._dead()
            else:
                raise MCPError(INVALID_PARAMS, f"There is no resource {uri[:200]}; try {WORKFLOWS_URI} or {DEAD}")
        except CoditectError as error:
            raise MCPError(INVALID_PARAMS if isinstance(error, InputError) else INTERNAL_ERROR, str(error)) from error
        text = dumps(document).decode()
        return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=JSON, text=text)])

    async def _workflows(self) -> Any:
        async with self._opened.fleet() as client:
            return [asdict(row) async for row in client.workflows.list(limit=MAX_LISTED)]

    async def _workflow(self, workflow: str) -> Any:
        found = await workflows.show_workflow(self._opened, workflow, None)
        return {"workflow": asdict(found.row), "nodes": [asdict(row) for row in found.nodes]}

    async def _dead(self) -> Any:
        letters = list[LetterDocument]()
        listing = await dead_letters.list_dead(
            self._opened,
            Selection(),
            most=MAX_LISTED,
            each=lambda letter: letters.append(LetterDocument.of(letter)),
        )
        nodes = [asdict(DeadNodeDocument.of(row)) for row in listing.nodes]
        return {"letters": [asdict(letter) for letter in letters], "nodes": nodes}

    async def _letter(self, letter_id: str) -> Any:
        letter = await dead_letters.show_letter(self._opened, letter_id, capability=None)
        return asdict(WholeLetter.of(letter))


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
                "capability": {"type": "string", "description": "The tool's name, or the capability with its dots."},
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

    async def listed(self, *_: object) -> ListToolsResult:
        """Return all MCP tools of the fleet, by the capabilities that the registry had at most a second ago.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        offered = await self._offered()
        return ListToolsResult(tools=[*(tool.described for tool in offered.values()), *_DURABLE_TOOLS])

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
        found = offered.get(name)
        if found is None and "." in name:  # a name without dots could mean another tool later
            found = next((tool for tool in offered.values() if tool.spec.name == name), None)
        if found is None:
            near = ", ".join(nearest_names(name, offered)) or "tools/list has all"
            raise MCPError(INVALID_PARAMS, f"No living agent offers the tool {name[:200]!r}; nearest: {near}")
        return found

    async def _run(self, tool: CapabilityTool, arguments: Mapping[str, Any], progress: Progress) -> CallToolResult:
        task_id = TaskId(SystemClock().new_id())  # known before, so that its first event is heard, too
        async with self._opened.fleet() as client, _told(client, task_id, progress):
            handle = await client.submit(tool.spec.name, input_of(tool.spec, arguments), task_id=task_id)
            try:
                return tool.answer(await handle.result(timeout=f"{LONGEST_DIRECT_SECONDS:.0f}s"))
            except asyncio.CancelledError:
                await asyncio.shield(handle.cancel(reason="its MCP client canceled the call"))
                raise
            finally:
                handle.forget()

    async def _submit(self, arguments: Mapping[str, Any], caller: str) -> CallToolResult:
        value = arguments.get("arguments") or {}
        if not isinstance(value, dict):
            raise InputError("The arguments of a tool are an object", given=type(value).__name__)
        tool = await self._tool(_text(arguments, "capability"))
        if arguments.get("key") is None:
            return await self._accept(tool, value)
        return await self._accept(tool, value, own_key("mcp", caller, _text(arguments, "key"), [tool.spec.name, value]))

    async def _accept(
        self, tool: CapabilityTool, arguments: Mapping[str, Any], key: RequestKey | None = None
    ) -> CallToolResult:
        options = Options(durable=True, idempotency_key=key)
        async with self._opened.fleet() as client:
            try:
                handle = await client.submit(
                    tool.spec.name, input_of(tool.spec, arguments), options=options, durable=True
                )
            except InputError as error:
                raise (error if key is None else MCPError(INVALID_PARAMS, str(error))) from error
            return answer({"task": handle.task_id, "state": "accepted"})

    async def _of_task(self, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
        async with self._opened.fleet() as client:
            handle = client.tasks.get(_text(arguments, "task"))
            if not self._allows((await handle.row()).capability):  # whoever may do some of the work has no say in other
                raise NotFound("There is no such task of these tools", task=handle.task_id)
            if name == CANCEL:
                await handle.cancel(reason="canceled by an MCP client")
            wait = arguments.get("wait_seconds") or 0
            if not isinstance(wait, int | float) or not 0 <= wait <= MOST_WAIT_SECONDS:
                raise InputError("There is no such wait", wait_seconds=wait, fix=f"0 to {MOST_WAIT_SECONDS:.0f}")
            report: dict[str, Any] = {"task": handle.task_id}
            try:
                report["result"] = await handle.result(timeout=f"{max(1, round(wait * 1000))}ms")
            except ResultTimeout:
                pass
            except TaskError as error:
                report["error"] = error.sentence
            return answer(report | {"state": (await handle.row()).state.value})


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
    text = arguments.get(name)
    if not isinstance(text, str) or not text:
        raise InputError("An argument of the tool is missing", argument=name, fix=f"{name}: a text")
    return text


def fleet_server(opened: Connections, patterns: Sequence[str] = ("*",)) -> Server[Any]:
    """Return the MCP server of a fleet: its capabilities whose names match a pattern as tools, and its resources."""
    tools, resources = FleetTools(opened, patterns), FleetResources(opened)

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        async def progress(share: float, note: str) -> None:
            await context.session.report_progress(share, 1.0, note or None)

        caller = LOCAL if context.request is None else context.request.state.caller.name
        return await tools.call(params.name, params.arguments or {}, progress, caller=caller)

    return Server(
        "coditect",
        version=__version__,
        title="Coditect",
        instructions=INSTRUCTIONS,
        on_list_tools=tools.listed,
        on_call_tool=call_tool,
        on_list_resources=resources.listed,
        on_list_resource_templates=resources.templates,
        on_read_resource=resources.read,
    )


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
