"""Messages in the sense of AMQP 0-9-1: a body, properties and a header table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from coditect.model.value import value

HeaderTable = Mapping[str, Any]
"""An AMQP field table: text, numbers, booleans, times, bytes, lists and tables; a foreign table may hold any value."""

NO_HEADERS: HeaderTable = MappingProxyType({})
JSON = "application/json"
OCTETS = "application/octet-stream"
"""The content type of a result whose body is bytes, and not JSON."""


class SharedHeaders(dict[str, Any]):
    """A header table that many messages share; must never change, because the broker's adapter encodes it only once.

    An adapter knows the table by identity: two tables with equal content are different tables.
    """

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment] # a dict has none


class TemplateHeaders(Mapping[str, Any]):
    """A header table made of headers that many messages share, and of one message's own headers, with other names."""

    __slots__ = ("own", "shared")

    def __init__(self, shared: SharedHeaders, own: HeaderTable) -> None:
        self.shared = shared
        self.own = own

    def __getitem__(self, name: str) -> Any:
        return self.own[name] if name in self.own else self.shared[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.shared
        yield from self.own

    def __len__(self) -> int:
        return len(self.shared) + len(self.own)

    def __repr__(self) -> str:
        return repr(dict(self))


@value
class Message:
    """A message as published and as delivered; always persistent, and properties that are None are not sent."""

    body: bytes
    headers: HeaderTable = field(default_factory=lambda: NO_HEADERS)
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    content_type: str | None = JSON
    expiration_ms: int | None = None
    """How long the message may wait in a queue before the broker drops it; None means without limit."""
    app_id: str | None = None
