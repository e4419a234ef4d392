"""Codecs by Python type: they validate a handler's input, encode its output, and give the JSON Schemas of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from coditect.errors import InvalidTask, SetupError
from coditect.model.message import OCTETS
from coditect.model.result import Outcome
from coditect.wire.json import dumps, loads

LARGE_BYTES = 256 * 1024
"""The size of a body from which on validation pauses, so that other threads run in between."""
_MAX_SHOWN = 5
_SAID_BY_JSON = (dict, list, tuple, str, int, float)


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


def _fix_of(error: Exception) -> str:
    if isinstance(error, PydanticUserError) and error.code == "typed-dict-version":
        return "before Python 3.12 take TypedDict from typing_extensions"
    return "use a pydantic model, a dataclass or plain JSON"


def _decoder(adapter: TypeAdapter[Any], type_: Any) -> Callable[[bytes], Any]:
    validate = adapter.validator.validate_json  # below the adapter's own method: half a microsecond less

    def decode(body: bytes) -> Any:
        try:
            return validate(body) if len(body) <= LARGE_BYTES else _interruptible(type_).validate_json(body)
        except ValidationError as error:
            raise InvalidTask("The body does not fit the schema", errors=_shown(error)) from error

    return decode


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
    dump = adapter.serializer.to_json

    def encode(value: Any) -> bytes:
        try:
            return dump(value, warnings="error")
        except ValueError as error:  # pydantic's serialization errors are ValueErrors
            raise InvalidTask("The value does not fit the schema", reason=str(error)[:300]) from error

    return encode


def _shown(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in found[:_MAX_SHOWN]]


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
