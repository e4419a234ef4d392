"""Messages that no task may be, as a stranger could publish them: their properties, and what they are refused for."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unittest.mock import patch

import pika.data
from pika.adapters.blocking_connection import BlockingChannel

MIB = 1024 * 1024
GOOD = b'{"say": "good"}'


@dataclass(frozen=True, slots=True)
class Bad:
    """A message and the reason it is refused with."""

    name: str
    reason: str
    body: bytes = GOOD
    properties: dict[str, Any] = field(default_factory=dict)
    answered: bool = True
    """Whether its return address can be read."""


def nested(depth: int) -> bytes:
    """An encoded table of tables; pika would need the stack for it."""
    inner = b""
    for _ in range(depth):
        inner = b"\x01aF" + struct.pack(">I", len(inner)) + inner
    return inner


def void_array(size: int) -> bytes:
    """An encoded table with one array of `size` values of one byte each."""
    return b"\x01aA" + struct.pack(">I", size) + b"V" * size


def publish_raw_headers(opened: BlockingChannel, exchange: str, key: str, encoded: bytes, **properties: Any) -> None:
    """Publishes with a header table that is encoded already."""
    raw = pika.BasicProperties(headers={"raw": 1}, **properties)

    def encode(pieces: list[bytes], _: object) -> int:
        pieces.append(struct.pack(">I", len(encoded)) + encoded)
        return 4 + len(encoded)

    with patch.object(pika.data, "encode_table", encode):
        opened.basic_publish(exchange, key, GOOD, raw, mandatory=True)


def _header(name: str, value: object) -> dict[str, Any]:
    return {"headers": {f"x-coditect-{name}": value}}


BODIES = (
    Bad("malformed JSON", "invalid_input", b'{"say": '),
    Bad("no JSON at all", "invalid_input", b"hello"),
    Bad("empty body", "invalid_input", b""),
    Bad("body that is not UTF-8", "invalid_input", b'{"say": "\xff\xfe"}'),
    Bad("UTF-16", "invalid_input", '{"say": "x"}'.encode("utf-16")),
    Bad("wrong type", "invalid_input", b'{"say": 7}'),
    Bad("unknown field", "invalid_input", b'{"shout": "x"}'),
    Bad("a list", "invalid_input", b"[]"),
    Bad("null", "invalid_input", b"null"),
    Bad("NaN", "invalid_input", b"NaN"),
    Bad("nested a million deep", "invalid_input", b"[" * 1_000_000),
    Bad("one byte over 1 MiB", "too_large", b'{"say": "' + b"x" * (MIB - 10) + b'"}'),
    Bad("10 MB", "too_large", b"x" * 10_000_000),
)

TYPES = (
    Bad("unknown type", "invalid_task", properties={"type": "coditect.task.v2"}),
    Bad("type of something else", "invalid_task", properties={"type": "coditect.result.v1"}),
)

HEADERS = (
    Bad("deadline that is no number", "invalid_task", properties=_header("deadline", "tomorrow")),
    Bad("deadline that is a time", "invalid_task", properties=_header("deadline", datetime(2030, 1, 1, tzinfo=UTC))),
    Bad("deadline that is true", "invalid_task", properties=_header("deadline", True)),
    Bad("deadline of 2^63-1", "invalid_task", properties=_header("deadline", 2**63 - 1)),
    Bad("deadline of -2^63", "invalid_task", properties=_header("deadline", -(2**63))),
    Bad("deadline of very many digits", "invalid_task", properties=_header("deadline", "9" * 5_000)),
    Bad("start-by that is a table", "invalid_task", properties=_header("start-by", {"a": {"b": [1]}})),
    Bad("timeout that is negative", "invalid_task", properties=_header("timeout-ms", -1)),
    Bad("timeout of nothing", "invalid_task", properties=_header("timeout-ms", 0)),
    Bad("attempt 0", "invalid_task", properties=_header("attempt", 0)),
    Bad("attempt that is bytes", "invalid_task", properties=_header("attempt", b"\xff\x00")),
    Bad("attempt that is a fraction", "invalid_task", properties=_header("attempt", Decimal("1.5"))),
    Bad("a million attempts", "invalid_task", properties=_header("max-attempts", 1_000_000)),
    Bad("publication that is a list", "invalid_task", properties=_header("publication", [1, [2]])),
    Bad("history that is no JSON", "invalid_task", properties=_header("errors", "[")),
    Bad("history that is no list", "invalid_task", properties=_header("errors", '{"a": 1}')),
    Bad("history that is nested deeply", "invalid_task", properties=_header("errors", "[" * 30_000)),
    Bad("history of 60 kB", "invalid_task", properties=_header("errors", "x" * 60_000)),
    Bad("workflow that is no text", "invalid_task", properties=_header("workflow", 7)),
    Bad("workflow that is not UTF-8", "invalid_task", properties=_header("workflow", b"\xff")),
    Bad("trace that is no text", "invalid_task", properties={"headers": {"traceparent": [1]}}),
    Bad("trace of 10 kB", "invalid_task", properties={"headers": {"tracestate": "x" * 10_000}}),
    Bad(
        "copy that claims another capability",
        "invalid_task",
        properties={"headers": {"CC": ["another.capability.p1"], "x-coditect-capability": "x"}},
    ),
    Bad("header of 100 kB", "invalid_task", properties={"headers": {"x": "y" * 100_000}}),
    Bad("header name that is not UTF-8", "invalid_task", properties={"headers": {b"\xff\xfe": 1}}),
)

PROPERTIES = (
    Bad("message id that is not UTF-8", "invalid_task", properties={"message_id": b"\xff\xfe"}),
    Bad("correlation id that is not UTF-8", "invalid_task", properties={"correlation_id": b"\xff" * 255}),
    Bad("type that is not UTF-8", "invalid_task", properties={"type": b"\xff"}),
    Bad("content type that is not UTF-8", "invalid_task", properties={"content_type": b"\xff"}),
    Bad("sender that is not UTF-8", "invalid_task", properties={"app_id": b"\xff"}),
    Bad("return address that is not UTF-8", "invalid_task", properties={"reply_to": b"\xff"}, answered=False),
)

ALL = (*BODIES, *TYPES, *HEADERS, *PROPERTIES)

ODD_BUT_FINE: dict[str, dict[str, Any]] = {
    "timestamp in nanoseconds": {"timestamp": 1_700_000_000_000_000_000},
    "timestamp of 2^63-1": {"timestamp": 2**63 - 1},
    "negative expiration header of its own": {"headers": {"expiration": -1, "x-message-ttl": -5}},
    "2^63-1 and bytes in foreign headers": {"headers": {"a": 2**63 - 1, "b": b"\xff", "c": None, "d": Decimal("1.5")}},
    "nested tables in foreign headers": {"headers": {"a": {"b": [{"c": [1, 2, {"d": None}]}]}}},
    "x-death of nobody": {"headers": {"x-death": "x", "x-first-death-queue": 7, "x-delivery-count": "many"}},
    "carbon copy to nobody": {"headers": {"CC": ["nobody.at.all.p1"]}},
    "255 bytes in every property": {"app_id": "a" * 255, "correlation_id": "c" * 255, "message_id": "m" * 255},
    "priority and user-defined encoding": {"priority": 255, "content_encoding": "gzip", "delivery_mode": 1},
    "header name of 200 bytes": {"headers": {"n" * 200: 1}},
    "a thousand headers": {"headers": {f"h{n}": n for n in range(1_000)}},
}
