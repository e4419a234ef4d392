"""The conversion of message headers and texts to the form in which AMQP delivers them, within AMQP's limits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from coditect.errors import InvalidTask
from coditect.model.message import HeaderTable

MAX_KEY_BYTES = 128
MAX_SHORT_BYTES = 255
_LARGEST = 2**63


def carried(headers: HeaderTable) -> dict[str, Any]:
    """Return a copy of a header table as a consumer would receive it.

    Raises:
        InvalidTask: when AMQP has no type for a value or key.
    """
    return {_key(name): _value(value) for name, value in headers.items()}


def carried_text(text: str | None) -> str | None:
    """Return a property or routing key as a consumer would receive it; an empty text becomes None.

    Raises:
        InvalidTask: when the text is longer.
    """
    if text and len(_bytes(text)) > MAX_SHORT_BYTES:
        raise InvalidTask("A property or routing key is over 255 bytes", begins=text[:40])
    return text or None


def _key(name: object) -> str:
    if not isinstance(name, str) or len(_bytes(name)) > MAX_KEY_BYTES:
        raise InvalidTask("A header's name is text of at most 128 bytes", name=str(name)[:40])
    return name


def _value(value: Any) -> Any:
    match value:
        case str():
            _bytes(value)
        case bytes():
            value = bytearray(value)
        case datetime():
            value = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
            value = value.replace(microsecond=0)
        case Mapping():
            value = carried(value)
        case list() | tuple():
            value = [_value(item) for item in value]
        case _ if not _is_plain(value):
            raise InvalidTask("AMQP has no type for a header's value", type=type(value).__name__)
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return -_LARGEST <= value < _LARGEST
    return value is None or isinstance(value, float | Decimal | bytearray)


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTask("Text on the wire is UTF-8", reason=str(error)) from error
