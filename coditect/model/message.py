"""A message as AMQP 0-9-1 means it: a body, properties and a header table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from coditect.model.value import value

HeaderTable = Mapping[str, Any]
"""AMQP field table: text, numbers, booleans, times, bytes, lists and tables; foreign ones hold anything."""

NO_HEADERS: HeaderTable = MappingProxyType({})
JSON = "application/json"


class SharedHeaders(dict[str, Any]):
    """Headers that many messages have in common, to be kept and never changed: an adapter encodes them once.

    Known by identity: two of them with the same content are not the same.
    """

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment] # a dict has none


class TemplateHeaders(Mapping[str, Any]):
    """A header table from a template: the shared headers, and under other names the message's own."""

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
    """What is published and delivered. Always persistent; properties that are None are not sent."""

    body: bytes
    headers: HeaderTable = field(default_factory=lambda: NO_HEADERS)
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    content_type: str | None = JSON
    expiration_ms: int | None = None
    """Broker-side limit on waiting in a queue; None waits for ever."""
    app_id: str | None = None
