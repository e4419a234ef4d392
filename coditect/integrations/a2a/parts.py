"""The conversion between the values of tasks and the parts of which A2A messages and artifacts consist.

A text is a text part, any other value a data part. Numbers in data parts are of 64 bits with a fraction, so that whole
numbers beyond 2^53 lose digits; a value that a data part cannot hold is a text part of JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from a2a.types.a2a_pb2 import Part
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.struct_pb2 import Value

from coditect.errors import InputError
from coditect.wire.json import dumps

TEXT, JSON = "text/plain", "application/json"
MOST_EXACT = 2**53
"""The bound of whole numbers that a data part holds without loss."""


def parts_of(value: Any) -> list[Part]:
    """Return the A2A parts that carry a value: one part, of text for a text, and of JSON for any other value."""
    if isinstance(value, str):
        return [Part(text=printable(value), media_type=TEXT)]
    try:
        return [Part(data=ParseDict(value, Value()), media_type=JSON)]
    except (ParseError, ValueError):  # nested more than 100 deep, or with half of a surrogate pair
        return [Part(text=printable(dumps(value).decode()), media_type=JSON)]


def value_of(parts: Sequence[Part]) -> Any:
    """Return the value of A2A parts: one part's own value, several texts joined by newlines, or else a list of values.

    Raises:
        InputError: when a part is a file or a link, there are no parts, or a number is none of JSON.
    """
    if not parts:
        raise InputError("A message without parts has no value", fix="one text part, or one data part")
    values = [_value(one) for one in parts]
    if len(values) > 1 and all(one.HasField("text") for one in parts):
        return "\n".join(values)
    return values[0] if len(values) == 1 else values


def answer_of(parts: Sequence[Part]) -> Any:
    """Return the value of an answer's parts as `value_of` does, but None for no parts, and JSON objects for files.

    Raises:
        InputError: when a number is none of JSON.
    """
    if not parts:
        return None
    files = [one for one in parts if not (one.HasField("text") or one.HasField("data"))]
    if not files:
        return value_of(parts)
    values = [plain(one) if one in files else _value(one) for one in parts]
    return values[0] if len(values) == 1 else values


def text_of(parts: Sequence[Part]) -> str:
    """Return the texts among A2A parts, joined by newlines, without parts of other kinds; empty if none is a text."""
    return "\n".join(one.text for one in parts if one.HasField("text"))


def printable(text: str) -> str:
    """Return a text that UTF-8 can encode, as protobuf demands: halves of surrogate pairs are escaped."""
    return text.encode(errors="backslashreplace").decode()


def plain(message: Any) -> Any:
    """Return a protobuf message as a JSON value, in which whole numbers up to 2^53 are integers.

    Raises:
        InputError: when a number in it is infinite, or none.
    """
    try:
        return _whole(MessageToDict(message))
    except ValueError as error:
        raise InputError("A number in the data is none of JSON", reason=str(error)[:200]) from error


def _value(part: Part) -> Any:
    if part.HasField("text"):
        return part.text
    if part.HasField("data"):
        return plain(part.data)
    fix = "send its content as text or data, or its address as a text"
    raise InputError("Files and links are not taken", media_type=part.media_type[:100], fix=fix)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_EXACT:
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value
