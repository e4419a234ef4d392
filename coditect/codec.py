"""Codecs by Python type: they validate a handler's input, encode its output, and give the JSON Schemas of both."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from coditect.errors import InvalidTask, SetupError
from coditect.model.message import OCTETS
from coditect.model.result import Outcome
from coditect.wire.json import check, dumps, dumps_plain, is_plain, loads

LARGE_BYTES = 256 * 1024
"""The size of a body from which on validation pauses, so that other threads run in between."""
_MAX_SHOWN = 5
_SAID_BY_JSON = (dict, list, tuple, str, int, float)
_CONTAINERS = frozenset({dict, list})
_ANY = {"type": "any"}
_FLAT = re.compile(
    "(model|dataclass|typed-dict)(-args|-fields?)?|nullable|default|str|int|float|bool|none|literal|uuid|datetime"
)
"""The kinds of pydantic's schemas whose values have a bounded number of parts, each written alike by orjson."""
_DIGITS = bytes(ord("0") if 48 <= code <= 57 else 32 for code in range(256))
"""The table that translates every digit to 0, and everything else to a blank."""
_LONG_INTEGER = b"0" * 19
_REPLACED = "\ufffd".encode()
_NO_NUMBER = re.compile(rb'"\s*[+-]?(?:nan|inf(?:inity)?|[\d.]+e\+?\d{3,}|\d{309,}[\d.]*)\s*"', re.IGNORECASE)
"""A text that pydantic may take for a number, but JSON has none such."""
_N, _I = b"NI"
"""What NaN, Infinity and -Infinity have, and few other bodies."""
_UNFIT = "The body does not fit the schema"


def _decode_json(body: bytes) -> Any:
    return loads(body) if body else None


@dataclass(frozen=True, slots=True)
class Codec:
    """The wire form of one Python type: decoder, encoder and JSON Schema."""

    decode: Callable[[bytes], Any] = _decode_json
    """Decode a JSON body to a value of the type; raises InvalidTask."""
    encode: Callable[[Any], bytes] = dumps
    """Encode a value of the type as a JSON body; raises InvalidTask."""
    schema: Mapping[str, object] = field(default_factory=dict)
    binary: bool = False
    """Whether the body is the value itself, bytes of any kind, and not JSON."""


WRITTEN_SCHEMA = "__json_schema__"
"""The attribute of a type whose JSON Schema was written elsewhere; it is kept as it is, with its `$ref`."""
PLAIN = Codec()
"""The codec of any value that JSON can express, without validation."""


def _same(body: bytes) -> bytes:
    return body


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidTask("The value is not bytes, which the handler's annotation promises", given=type(value).__name__)
    return bytes(value)


BYTES = Codec(_same, _as_bytes, {"type": "string", "contentMediaType": OCTETS}, binary=True)
"""The codec of bytes as the whole input or value of a task, which travel as they are."""


def is_binary(schema: Mapping[str, object]) -> bool:
    """Tell whether a capability's schema of its input or value means bytes in place of JSON."""
    return schema.get("contentMediaType") == OCTETS


def value_of(outcome: Outcome, model: Any) -> Any:
    """Return the value of a completed task, validated as `model`; `bytes` gives the body as it came.

    Raises:
        InvalidTask: when the value does not fit.
    """
    if model is bytes or (outcome.binary and model is Any):
        return outcome.body
    return codec(model).decode(outcome.body)


@lru_cache(maxsize=1_000)
def codec(type_: Any) -> Codec:
    """Return the codec of a type: a pydantic model, dataclass, typed dict, a list of these, or plain JSON.

    Codecs are cached by type, since making one takes over a millisecond.

    Raises:
        SetupError: when the type cannot be validated.
    """
    if type_ in (Any, None, type(None), object, dict, inspect.Parameter.empty):
        return PLAIN
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(type_)
        schema = getattr(type_, WRITTEN_SCHEMA, None) or adapter.json_schema()
    except (PydanticUserError, TypeError, NameError) as error:
        raise SetupError("The type cannot be validated", type=str(type_), fix=_fix_of(error)) from error
    return Codec(_decoder(adapter, type_), _encoder(adapter), schema)


@dataclass(frozen=True, slots=True)
class _Looseness:
    """Which values of a type may hold what JSON cannot express, such as NaN, although they fit the type.

    Only such values are searched.
    """

    numbers: bool = False
    """Whether the type has numbers with a fraction, or values of any type."""
    integers: bool = False
    """Whether the type has integers, or values of any type."""
    mappings: bool = False
    """Whether the type has mappings, or values of any type."""
    keys: bool = False
    """Whether the type has mappings with keys of any type, or with numbers as keys that may be infinite."""
    typed_keys: bool = False
    """Whether the type has mappings with keys of a type other than text, such as `dict[int, str]`."""
    floats_as_text: bool = False
    """Whether a model says that NaN and Infinity are written as text, by `ser_json_inf_nan="strings"`."""

    @classmethod
    def of(cls, schema: object) -> _Looseness:
        """Return the looseness of a type, given its core schema of pydantic."""
        found = cls()
        left: list[Any] = [schema]
        while left:
            part = left.pop()
            if isinstance(part, dict):
                found = found._with(part)
                left += (inner for name, inner in part.items() if name != "metadata")
            elif isinstance(part, list | tuple):
                left += part
        return found

    def _with(self, part: dict[str, Any]) -> _Looseness:
        found = self
        match part:
            case {"type": "any"} | {"extra_fields_behavior": "allow"}:
                found = replace(self, numbers=True, integers=True, mappings=True, keys=True)
            case {"type": "function-plain" | "function-wrap", "function": serializer} if callable(serializer):
                found = self if "return_schema" in part else self._with(_ANY)  # a validator's function is a dict
            case {"type": "float" | "decimal"}:
                found = replace(self, numbers=True)
            case {"type": "int"}:
                found = replace(self, integers=True)
            case {"type": "enum", "members": members} | {"type": "literal", "expected": members}:
                found = self if all(map(_is_tight, members)) else self._with(_ANY)
            case {"type": "dict" | "frozendict" | "ordered-dict" | "counter"}:
                found = self._with_keys(part.get("keys_schema"))
            case {"ser_json_inf_nan": "strings"}:
                found = replace(self, floats_as_text=True)
        return found

    def _with_keys(self, keys: Any) -> _Looseness:
        while isinstance(keys, dict) and "schema" in keys:  # a constraint or validator around it
            keys = keys["schema"]
        kind = (keys or _ANY)["type"]
        return replace(
            self,
            mappings=True,
            keys=self.keys or kind in ("any", "float", "decimal"),
            typed_keys=self.typed_keys or kind not in ("any", "str"),
        )


def _is_tight(member: Any) -> bool:
    """Tell whether JSON can express a member of an enum or literal, whatever it is."""
    value = member.value if isinstance(member, Enum) else member
    return isinstance(value, str | bool) or value is None


def _fix_of(error: Exception) -> str:
    if isinstance(error, PydanticUserError) and error.code == "typed-dict-version":
        return "before Python 3.12 take TypedDict from typing_extensions"
    return "use a pydantic model, a dataclass or plain JSON"


def _decoder(adapter: TypeAdapter[Any], type_: Any) -> Callable[[bytes], Any]:
    validate = adapter.validator.validate_json  # below the adapter's own method: half a microsecond less
    loose, plain = _Looseness.of(adapter.core_schema), adapter.serializer.to_python

    def decode(body: bytes) -> Any:
        try:
            value = validate(body) if len(body) <= LARGE_BYTES else _interruptible(type_).validate_json(body)
        except ValidationError as error:
            raise InvalidTask(_UNFIT, errors=_shown(error)) from error
        if loose.numbers or _N in body or _I in body:
            loads(body)  # pydantic takes numbers that JSON does not have, such as NaN, Infinity and 1e999
        if loose.numbers and _is_doubtful(body):
            with suppress(PydanticSerializationError):  # a serializer of the user's own, which no input needs
                written = plain(value, warnings=False, exclude_unset=True)
                check(written, any_keys=True, any_floats=loose.floats_as_text, sentence=_UNFIT)
        return value

    return decode


def _is_doubtful(body: bytes) -> bool:
    """Tell whether a body may have a text that pydantic takes for a number, but JSON has none such."""
    escaped = b"\\" in body or b"_" in body or not body.isascii()  # pydantic reads `"\\u006ean"` and `"1e4_00"`, too
    return escaped or _NO_NUMBER.search(body) is not None


@lru_cache(maxsize=100)
def _interruptible(type_: Any) -> TypeAdapter[Any]:
    """Return a pydantic adapter of a type; while it validates a list or dict, other threads may run between the items.

    Validation holds the interpreter's lock from beginning to end, so that a thread of its own is not enough: other
    threads, such as the event loop's, run only during such calls. The items of an inner list have no such calls.
    """
    outer, inner = get_origin(type_), get_args(type_)
    if outer not in (list, dict):
        return TypeAdapter(type_)
    *before, item = inner
    called: Any = Annotated
    return TypeAdapter(outer[*before, called[item, AfterValidator(_unchanged)]])


def _unchanged(value: Any) -> Any:
    return value


def _encoder(adapter: TypeAdapter[Any]) -> Callable[[Any], bytes]:
    dump, plain = adapter.serializer.to_json, adapter.serializer.to_python
    loose = _Looseness.of(adapter.core_schema)
    checked = loose.keys or loose.numbers or loose.integers or loose.mappings
    flat = _is_flat(adapter.core_schema) and not loose.keys

    def encode(value: Any) -> bytes:
        try:
            if flat:  # orjson writes long texts ten times as fast, and refuses long integers itself
                text = dumps_plain(plain(value, mode="json", warnings="error"))
                if text is not None and not (loose.numbers and b"null" in text):
                    return text
            written = dump(value, warnings="error")
            if checked and (loose.keys or _is_suspicious(written, loose)):
                plain_value = value if type(value) in _CONTAINERS else plain(value)
                if not is_plain(plain_value):
                    check(plain(value), any_keys=loose.typed_keys, any_floats=loose.floats_as_text)
        except ValueError as error:  # pydantic's serialization errors are ValueErrors
            raise InvalidTask("The value does not fit the schema", reason=str(error)[:300]) from error
        return written

    return encode


def _is_flat(schema: object) -> bool:
    """Tell whether a type's values have a bounded number of parts, so that a long one is long by its texts."""
    left: list[Any] = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if not _FLAT.fullmatch(str(part.get("type", "str"))) or part.get("extra_fields_behavior") == "allow":
                return False
            left += (inner for name, inner in part.items() if name != "metadata")
        elif isinstance(part, list | tuple):
            left += part
    return True


def _is_suspicious(written: bytes, loose: _Looseness) -> bool:
    """Tell whether pydantic may have written a value otherwise than JSON can express it.

    It writes NaN as null, a key None as text, a lone surrogate of a key as U+FFFD, and integers of any length.
    """
    return (
        (loose.numbers and (b"null" in written or b"NaN" in written or b"Infinity" in written))
        or (loose.integers and _LONG_INTEGER in written.translate(_DIGITS))
        or (loose.mappings and (b'"None":' in written or _REPLACED in written))
    )


def _shown(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [f"{'.'.join(map(str, detail['loc'])) or 'body'}: {detail['msg']}" for detail in found[:_MAX_SHOWN]]


def encode_any(value: Any) -> bytes:
    """Encode a value of any supported type, nested or not, as JSON; bytes count as JSON already.

    Raises:
        InvalidTask: when JSON or the value's type does not allow the value.
        SetupError: when the value's type cannot be validated.
    """
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, _SAID_BY_JSON):
        return dumps(value, otherwise=_plain)
    return _encode(value)


def _encode(value: object) -> bytes:
    kind: Any = type(value)
    return codec(kind).encode(value)


def _plain(value: object) -> Any:
    return loads(_encode(value))
