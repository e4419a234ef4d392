"""A message as AMQP 0-9-1 means it: a body, properties and a header table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from coditect.model.value import value

HeaderTable = Mapping[str, Any]
"""AMQP field table: text, numbers, booleans, times, bytes, lists and tables; foreign ones hold anything."""

NO_HEADERS: HeaderTable = MappingProxyType({})


@value
class Message:
    """What is published and delivered. Always persistent; properties that are None are not sent."""

    body: bytes
    headers: HeaderTable = field(default_factory=lambda: NO_HEADERS)
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    content_type: str | None = "application/json"
    expiration_ms: int | None = None
    """Broker-side limit on waiting in a queue; None waits for ever."""
    app_id: str | None = None
