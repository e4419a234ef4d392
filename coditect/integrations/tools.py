"""The fleet's capabilities as tools of language models: which there are, and the form of a tool's arguments.

A tool takes an object. The input of a capability that takes another type is the field `input` of one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

from coditect.client.options import RequestKey
from coditect.model.capability import CapabilitySpec
from coditect.model.registration import AgentRecord
from coditect.operations.fleet import offers_of
from coditect.registry.port import Search

logger = logging.getLogger(__name__)

INPUT = "input"
LOOK_SECONDS = 1.0
MOST_REFERENCES = 50
"""How many references and combinations are followed from one to the next."""
_DEFINITIONS = ("$defs", "definitions")
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_BY_NAME = frozenset({*_DEFINITIONS, "properties", "patternProperties", "dependentSchemas", "dependencies"})
"""The keywords whose values have schemas by names, which are no keywords."""
_VALUES = frozenset({"const", "enum", "default", "examples", "example"})
_KINDS = {type(None): "null", str: "string"}


class OfferedCapabilities:
    """The capabilities that living agents offer, read from the registry when asked for, at most once a second."""

    def __init__(self, find: Callable[[Search], Awaitable[tuple[AgentRecord, ...]]]) -> None:
        """Take the function that searches the registry, such as `Registry.find`."""
        self._find = find
        self._looking = asyncio.Lock()
        self._known: Mapping[str, CapabilitySpec] = {}
        self._until = 0.0
        """The event loop's time until which the known capabilities count as present."""
        self._checked: dict[str, tuple[CapabilitySpec, bool]] = {}
        """Whether a capability's schemas can be those of a tool, by name, and for which specification that holds."""

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

    async def as_tools(self) -> Mapping[str, CapabilitySpec]:
        """Return the capabilities of `now` whose schemas are JSON Schemas; each of the others is logged once.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        known = await self.now()
        async with self._looking:
            for name, spec in known.items():
                if name not in self._checked or self._checked[name][0] != spec:
                    self._checked[name] = spec, await asyncio.to_thread(_can_be_tool, spec)
            self._checked = {name: self._checked[name] for name in known}
            return {name: spec for name, spec in known.items() if self._checked[name][1]}


def input_of(spec: CapabilitySpec, arguments: Mapping[str, Any]) -> Any:
    """Return a task's input from a tool call's arguments: all of them if it is an object, else the argument `input`."""
    return dict(arguments) if is_object(spec.input_schema) else arguments.get(INPUT)


def own_key(door: str, caller: str, key: str, request: Any) -> RequestKey:
    """Return a caller's idempotency key, as the control plane keeps it, with a hash that tells its request from others.

    A slash in the caller's name is written otherwise, so that `a/b` with the key `c` is not `a` with the key `b/c`.
    """
    name = caller.replace("%", "%25").replace("/", "%2F")
    written = json.dumps(request, sort_keys=True, default=str)
    return RequestKey(f"{door}/{name}/{key}", hashlib.sha256(written.encode()).hexdigest())


def as_object(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a schema of type `object`: the given one if it is that, else one whose field `name` has the given one.

    The field is required unless its schema takes null. References inside of the given schema stay valid: definitions
    move to the new root, and other local references get the field's place.
    """
    if is_object(schema):
        return {key: value for key, value in schema.items() if key != "$schema"}
    moved = _moved(schema, f"#/properties/{name}", str(schema.get("$id", "")))
    inner = {key: value for key, value in moved.items() if key not in (*_DEFINITIONS, "$schema", "$id")}
    required = [] if admits(schema, None) else [name]
    whole: dict[str, Any] = {"type": "object", "properties": {name: inner}, "required": required}
    return whole | {key: moved[key] for key in _DEFINITIONS if key in moved}


def is_object(schema: Mapping[str, object]) -> bool:
    """Tell whether a JSON Schema states the type `object`."""
    return schema.get("type") == "object"


def admits(schema: Any, value: str | None) -> bool:
    """Tell whether a JSON Schema admits null, or a text, by its types, enums, constants and combinations of these."""
    return _admits(schema, value, schema, {}, MOST_REFERENCES)


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema to which the root of a JSON Schema refers, if it is a local reference; else the root."""
    found: Any = schema
    for _ in range(MOST_REFERENCES):
        if not isinstance(found, Mapping) or not isinstance(found.get("$ref"), str):
            break
        found = _target(found["$ref"], schema)
    return found if isinstance(found, Mapping) else schema


def _can_be_tool(spec: CapabilitySpec) -> bool:
    """Tell whether a capability's schemas are JSON Schemas of bounded depth; log why not."""
    from coditect.integrations.json_schema import check_schema  # noqa: PLC0415 - an optional dependency

    try:
        for schema in (spec.input_schema, spec.output_schema):
            check_schema(schema)
            as_object(schema, INPUT)
    except Exception as error:  # noqa: BLE001 - the boundary: what an agent registered may be anything
        facts = {"capability": spec.name, "reason": str(error)[:500], "fix": "mend its schema, and restart its agent"}
        logger.warning("A capability is not offered as a tool: its schema cannot be used", extra=facts)
        return False
    return True


def _admits(schema: Any, value: str | None, root: Any, known: dict[int, bool], left: int) -> bool:
    """Tell whether a part of the schema `root` admits a value, each part once; `known` are the verdicts until now.

    A part that refers to itself, or lies more than `left` references and combinations deep, admits the value. Keywords
    of a wrong form, which no schema of a tool has, admit it, too.
    """
    if not isinstance(schema, Mapping) or left == 0:
        return schema is not False
    if id(schema) in known:
        return known[id(schema)]
    known[id(schema)] = True

    def part(inner: Any) -> bool:
        return _admits(inner, value, root, known, left - 1)

    kind, kinds, enum, reference = _KINDS[type(value)], schema.get("type"), schema.get("enum"), schema.get("$ref")
    known[id(schema)] = (
        not (isinstance(kinds, str | list) and kind not in ([kinds] if isinstance(kinds, str) else kinds))
        and ("const" not in schema or schema["const"] == value)
        and not (isinstance(enum, list) and value not in enum)
        and (not isinstance(reference, str) or part(_target(reference, root)))
        and all(part(one) for one in _parts(schema, "allOf"))
        and all(any(part(one) for one in _parts(schema, key)) for key in ("anyOf", "oneOf") if _parts(schema, key))
    )
    return known[id(schema)]


def _parts(schema: Mapping[str, Any], key: str) -> list[Any]:
    found = schema.get(key)
    return found if isinstance(found, list) else []


def _target(reference: str, root: Any) -> Any:
    """Return the part of a schema at which a local reference points; the schema that admits all if there is none."""
    found, own = root, str(root.get("$id", ""))
    pointer = reference.removeprefix(own) if own else reference
    if pointer.lstrip("#").strip("/") and not pointer.startswith("#/"):
        return {}
    for part in pointer.lstrip("#").split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            return {}
    return found


def _moved(schema: Any, place: str, own: str) -> Any:
    """Return a schema with its local references changed as if its root, but not its definitions, lay at a place."""
    if isinstance(schema, list):
        return [_moved(part, place, own) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = dict[str, Any]()
    for key, value in schema.items():
        if key in _REFERENCES and isinstance(value, str):
            moved["$ref" if key == "$recursiveRef" else key] = _moved_reference(value, place, own)
        elif key in _BY_NAME and isinstance(value, Mapping):
            moved[key] = {name: _moved(part, place, own) for name, part in value.items()}
        else:
            moved[key] = value if key in _VALUES else _moved(value, place, own)
    return moved


def _moved_reference(reference: str, place: str, own: str) -> str:
    local = reference.removeprefix(own) or "#" if own else reference
    if local in ("#", "#/"):
        return place
    if local.startswith("#/") and local.split("/")[1] not in _DEFINITIONS:
        return place + local[1:]
    return local
