"""The fleet's capabilities as tools of language models: which there are, and the form of a tool's arguments.

A tool takes an object. The input of a capability that takes another type is the field `input` of one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from coditect.client.options import RequestKey
from coditect.errors import InvalidTask
from coditect.model.capability import CapabilitySpec
from coditect.model.registration import AgentRecord
from coditect.operations.fleet import offers_of
from coditect.registry.port import Search

logger = logging.getLogger(__name__)

INPUT = "input"
OFFERS_FRESH_SECONDS = 1.0
MOST_REFERENCES = 50
"""How many references and combinations are followed from one to the next."""
_DEFINITIONS = ("$defs", "definitions")
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_BY_NAME = frozenset({*_DEFINITIONS, "properties", "patternProperties", "dependentSchemas", "dependencies"})
"""The keywords whose values have schemas by names, which are no keywords."""
_ANCHORS = ("$anchor", "$dynamicAnchor")
_IDS = ("$id", "id")
_ROOT_ONLY = frozenset({"$schema", *_IDS})
_UNPORTABLE = frozenset({"$async", "$dynamicRef", "$id", "$recursiveRef", "patternProperties"})
"""Keywords that clients of draft 7 read otherwise, or refuse; names of patterns have dialects, as all patterns do."""
_MODERN_NAMES = {"items": "prefixItems", "additionalItems": "items"}
"""The keywords of a tuple of earlier drafts, and their names in draft 2020-12."""
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
                self._known = {offer.spec.name: offer.spec for offer in offers_of(await self._find(Search()))}
                self._until = loop.time() + OFFERS_FRESH_SECONDS
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
    """Return a task's input from a tool call's arguments: all of them if it is an object, else the argument `input`.

    Raises:
        InvalidTask: when there are other arguments, which would be lost.
    """
    if is_object(spec.input_schema):
        return dict(arguments)
    if unknown := sorted(arguments.keys() - {INPUT}):
        fix = f'{{"{INPUT}": ...}} with the whole input'
        raise InvalidTask("This tool takes one argument", unknown=unknown[:5], fix=fix)
    return arguments.get(INPUT)


def own_key(door: str, caller: str, key: str, request: Any) -> RequestKey:
    """Return a caller's idempotency key, as the control plane keeps it, with a hash that tells its request from others.

    A slash in the caller's name is written otherwise, so that `a/b` with the key `c` is not `a` with the key `b/c`.
    """
    name = caller.replace("%", "%25").replace("/", "%2F")
    written = json.dumps(request, sort_keys=True, default=str)
    return RequestKey(f"{door}/{name}/{key}", hashlib.sha256(written.encode()).hexdigest())


def as_object(schema: Mapping[str, Any], name: str, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a schema of type `object`: the given one if it is that, else one whose field `name` has the given one.

    The field is required unless its schema takes null. References inside of the given schema stay valid: definitions
    move to the new root, other local references get the field's place, and those by an anchor become pointers. The
    keywords `without` are left out.
    """
    move = _Move.of(schema, "#" if is_object(schema) else f"#/properties/{name}", without)
    moved = {key: value for key, value in move.schema(schema, root=True).items() if key not in _ROOT_ONLY}
    if is_object(schema):
        return moved
    inner = {key: value for key, value in moved.items() if key not in _DEFINITIONS}
    required = [] if admits(schema, None) else [name]
    whole: dict[str, Any] = {"type": "object", "properties": {name: inner}, "required": required}
    return whole | {key: moved[key] for key in _DEFINITIONS if key in moved}


def is_portable(schema: Mapping[str, Any]) -> bool:
    """Tell whether readers of draft 7 and of 2020-12 read a schema of `as_object` alike.

    Many MCP clients prepare all output schemas of a server as draft 7, and list no tool if one of them fails.
    """
    for _, part in _schemas(schema):
        tuples = "prefixItems" in part and "items" in part
        if tuples or not _UNPORTABLE.isdisjoint(part) or isinstance(part.get("id"), str):
            return False
        reference = part.get("$ref", "#")
        if not (isinstance(reference, str) and reference.startswith("#")) or _target(reference, schema) is None:
            return False
    return True


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
            check_schema(as_object(schema, INPUT))
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
        and all(part(inner) for inner in _parts(schema, "allOf"))
        and all(any(part(inner) for inner in _parts(schema, key)) for key in ("anyOf", "oneOf") if _parts(schema, key))
    )
    return known[id(schema)]


def _parts(schema: Mapping[str, Any], key: str) -> list[Any]:
    found = schema.get(key)
    return found if isinstance(found, list) else []


def _target(reference: str, root: Any) -> Any:
    """Return the part of a schema at which a local reference points; None if there is none."""
    found, pointer = root, _local(reference, _own_id(root))
    if pointer not in ("", "#") and not pointer.startswith("#/"):
        return None
    for part in pointer.split("/")[1:]:
        found = _member(found, part)
    return found


def _member(schema: Any, part: str) -> Any:
    """Return the member of a schema or list that one part of a JSON pointer names; None if there is none."""
    key = unquote(part).replace("~1", "/").replace("~0", "~")
    if isinstance(schema, list) and key.isdecimal() and int(key) < len(schema):
        return schema[int(key)]
    if isinstance(schema, Mapping) and key in schema:
        return schema[key]
    return None if key else schema


def _own_id(schema: Mapping[str, Any]) -> str:
    """Return the identifier of a schema, which draft 4 calls `id`; empty without one."""
    return next((identifier.rstrip("#") for key in _IDS if isinstance(identifier := schema.get(key), str)), "")


def _local(reference: str, own: str) -> str:
    """Return a reference to the schema with the identifier `own` without that; any other one as it is."""
    local = reference.removeprefix(own)
    return (local or "#") if local == "" or local.startswith("#") else reference


def _schemas(schema: Any, pointer: str = "#") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the schemas within a JSON Schema with their JSON pointers, itself first."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _schemas(part, f"{pointer}/{number}")
    elif isinstance(schema, Mapping):
        yield pointer, schema
        for key, value in schema.items():
            if key in _BY_NAME and isinstance(value, Mapping):
                for name, part in value.items():
                    yield from _schemas(part, f"{pointer}/{key}/{_escaped(name)}")
            elif key not in _VALUES:
                yield from _schemas(value, f"{pointer}/{_escaped(key)}")


def _escaped(name: str) -> str:
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~$")


def _modern(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with the tuples of earlier drafts as those of draft 2020-12."""
    if not isinstance(schema.get("items"), list):
        return schema
    items = {"items": schema["additionalItems"]} if "additionalItems" in schema else {}
    others = {key: value for key, value in schema.items() if key not in ("items", "additionalItems")}
    return {**others, "prefixItems": schema["items"], **items}


def _modern_pointer(pointer: str, root: Any) -> str:
    """Return where `_modern` moves the part of a schema at which a JSON pointer points."""
    found, by_name, parts = root, False, pointer.split("/")
    for place, part in enumerate(parts[1:], 1):
        if not by_name and isinstance(found, Mapping) and isinstance(found.get("items"), list):
            parts[place] = _MODERN_NAMES.get(part, part)
        by_name = not by_name and part in _BY_NAME
        found = _member(found, part)
    return "/".join(parts)


@dataclass(frozen=True, slots=True)
class _Move:
    """The move of a schema, but not of its definitions, to another place, with all that refers to its parts."""

    root: Mapping[str, Any]
    place: str
    own_id: str
    anchors: Mapping[str, str]
    """The pointers for which the names of anchors stand."""
    without: frozenset[str]

    @classmethod
    def of(cls, schema: Mapping[str, Any], place: str, without: Collection[str]) -> _Move:
        anchors = {
            f"#{name.removeprefix('#')}": pointer
            for pointer, part in _schemas(schema)
            for key in (*_ANCHORS, *_IDS)
            if isinstance(name := part.get(key), str) and (key in _ANCHORS or name.startswith("#"))
        }
        return cls(schema, place, _own_id(schema), anchors, frozenset((*without, *_ANCHORS, "$recursiveAnchor")))

    def schema(self, schema: Any, *, root: bool = False) -> Any:
        """Return a schema, or a list of them, as it is at the other place; one with its own `$id` does not change."""
        if isinstance(schema, list):
            return [self.schema(part) for part in schema]
        if not isinstance(schema, Mapping) or (not root and not str(schema.get("$id", "#")).startswith("#")):
            return schema
        moved = dict[str, Any]()
        for key, value in _modern(schema).items():
            if key in _REFERENCES and isinstance(value, str):
                moved["$ref"] = self._reference(value)
            elif key in _BY_NAME and isinstance(value, Mapping):
                moved[key] = {name: self.schema(part) for name, part in value.items()}
            elif key not in self.without and not (key in _IDS and str(value).startswith("#")):
                moved[key] = value if key in _VALUES else self.schema(value)
        return moved

    def _reference(self, reference: str) -> str:
        local = _local(reference, self.own_id)
        local = self.anchors.get(local, local)
        if local in ("#", "#/"):
            return self.place
        if not local.startswith("#/"):
            return local
        local = _modern_pointer(local, self.root)
        return local if local.split("/")[1] in _DEFINITIONS else self.place + local[1:]
