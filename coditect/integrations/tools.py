"""The fleet's capabilities as tools of language models: which there are, and the form of a tool's arguments.

A tool takes an object. The input of a capability that takes another type is the field `input` of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from coditect.model.capability import CapabilitySpec
from coditect.model.registration import AgentRecord
from coditect.operations.fleet import offers_of
from coditect.registry.port import Search

INPUT = "input"
LOOK_SECONDS = 1.0


class OfferedCapabilities:
    """The capabilities that living agents offer, read from the registry when asked for, at most once a second."""

    def __init__(self, find: Callable[[Search], Awaitable[tuple[AgentRecord, ...]]]) -> None:
        """Take the function that searches the registry, such as `Registry.find`."""
        self._find = find
        self._looking = asyncio.Lock()
        self._known: Mapping[str, CapabilitySpec] = {}
        self._until = 0.0
        """The event loop's time until which the known capabilities count as present."""

    async def now(self) -> Mapping[str, CapabilitySpec]:
        """Return the capabilities by name, as the registry had them at most a second ago.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._looking:  # calls at one time share one look
            if asked >= self._until:
                self._known = {one.spec.name: one.spec for one in offers_of(await self._find(Search()))}
                self._until = loop.time() + LOOK_SECONDS
            return self._known


def input_of(spec: CapabilitySpec, arguments: Mapping[str, Any]) -> Any:
    """Return a task's input from a tool call's arguments: all of them if it is an object, else the argument `input`."""
    return dict(arguments) if is_object(spec.input_schema) else arguments.get(INPUT)


def as_object(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a schema of type `object`: the given one if it is that, else one whose field `name` has the given one."""
    if is_object(schema):
        return dict(schema)
    inner = {key: value for key, value in schema.items() if key not in ("$defs", "$schema")}
    required = [name] if inner.get("type", "null") != "null" or len(inner) > 1 else []
    whole: dict[str, Any] = {"type": "object", "properties": {name: inner}, "required": required}
    if "$defs" in schema:
        whole["$defs"] = schema["$defs"]
    return whole


def is_object(schema: Mapping[str, object]) -> bool:
    """Tell whether a JSON Schema states the type `object`."""
    return schema.get("type") == "object"
