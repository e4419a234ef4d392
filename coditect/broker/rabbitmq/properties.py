"""The conversion between messages and AMQP properties."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pamqp.commands import Basic

from coditect.broker.rabbitmq.connection.lenient import Undecodable, marked
from coditect.model.message import NO_HEADERS, Message

PERSISTENT = 2
UNSPEAKABLE = (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""The error types for a property or header that AMQP cannot carry; nothing was sent then."""
_TEXTS = ("message_id", "correlation_id", "reply_to", "type", "content_type", "app_id")


def to_properties(message: Message) -> Basic.Properties:
    """Convert a message's properties and headers into AMQP properties, always persistent."""
    return Basic.Properties(
        content_type=message.content_type,
        headers={name: sendable(value) for name, value in message.headers.items()} if message.headers else None,
        delivery_mode=PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=None if message.expiration_ms is None else str(message.expiration_ms),
        message_id=message.message_id,
        message_type=message.type,
        app_id=message.app_id,
    )


def from_properties(properties: Basic.Properties, body: bytes) -> Message:
    """Convert AMQP properties and a body into a message; an expiration that is no number is dropped.

    A property that is not UTF-8 is left out and named in the header `x-coditect-undecodable`.
    """
    expiration = properties.expiration
    message = Message(
        body=body,
        headers=properties.headers or NO_HEADERS,
        message_id=properties.message_id or None,
        correlation_id=properties.correlation_id or None,
        reply_to=properties.reply_to or None,
        type=properties.message_type or None,
        content_type=properties.content_type or None,
        expiration_ms=int(expiration) if expiration and expiration.isdecimal() else None,
        app_id=properties.app_id or None,
    )
    texts = (message.message_id, message.correlation_id, message.reply_to, message.type)
    if Undecodable in map(type, (*texts, message.content_type, message.app_id)):
        return _without_wrong_texts(message)
    return message


def _without_wrong_texts(message: Message) -> Message:
    wrong = [name for name in _TEXTS if isinstance(getattr(message, name), Undecodable)]
    left_out: dict[str, Any] = dict.fromkeys(wrong)
    told = marked(f"not UTF-8: {', '.join(wrong)}")
    return replace(message, headers={**message.headers, **told}, **left_out)


def sendable(value: Any) -> Any:
    """Return a header value in types that pamqp can write: bytes as a byte array, tuples as lists, the rest as is.

    Raises:
        Exception: any of `UNSPEAKABLE`, for a value that AMQP cannot carry.
    """
    if isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, list | tuple):
        return [sendable(one) for one in value]
    if isinstance(value, Mapping):
        return {name: sendable(one) for name, one in value.items()}
    return value
