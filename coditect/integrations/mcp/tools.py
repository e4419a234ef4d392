"""How a capability looks as an MCP tool: its name, its schemas, and the form of its input and its value.

MCP wants objects: an input or a value of another type is the field `input`, or `result`, of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp_types import CallToolResult, TextContent, Tool

from coditect.codec import is_binary
from coditect.errors import CoditectError
from coditect.integrations.tools import INPUT, as_object, input_of, is_object, is_portable
from coditect.model.capability import CapabilitySpec
from coditect.wire.json import dumps

RESULT = "result"
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

    def input_of(self, arguments: Mapping[str, Any]) -> Any:
        """Return the task's input: the arguments of the MCP call, or only `input` if the capability takes no object."""
        return input_of(self.spec, arguments)

    def answer(self, value: Any) -> CallToolResult:
        """Return the MCP answer with a task's value; a value that is no object by schema becomes the field `result`."""
        is_whole = is_object(self.spec.output_schema) and isinstance(value, dict)
        structured = value if is_whole else {RESULT: value}
        return answer(structured, text=value if isinstance(value, str) else None)


def capability_tools(specs: Iterable[CapabilitySpec]) -> dict[str, CapabilityTool]:
    """Return the tools of capabilities by name: `code_review` for `code.review`, since many clients allow no dots.

    Where two capabilities would have one name, the later one of their sorted names keeps its dots. Capabilities that
    take or return bytes are left out: MCP's arguments are JSON.
    """
    tools: dict[str, CapabilityTool] = {}
    for spec in sorted(specs, key=lambda one: one.name):
        if is_binary(spec.input_schema) or is_binary(spec.output_schema):
            continue
        short = spec.name.replace(".", "_")
        name = spec.name if short in tools else short
        tools[name] = CapabilityTool(name, spec)
    return tools


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
    schema = as_object(spec.output_schema, RESULT, without=("pattern",))
    return schema if spec.output_schema and is_portable(schema) else None
