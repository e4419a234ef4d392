"""Bytes that a stranger's message may be made of: read as far as they can be."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from coditect.broker.rabbitmq.connection.lenient import MAX_TABLE_BYTES, read_leniently
from coditect.broker.rabbitmq.properties import from_properties
from coditect.errors import InvalidTask
from coditect.model.message import Message
from coditect.wire.tasks import UNDECODABLE, read_task
from tests.integration.wire.hostile import nested, void_array

PREFIX = struct.Struct(">HHQ")


def _table(encoded: bytes) -> bytes:
    return struct.pack(">I", len(encoded)) + encoded


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _received(flags: dict[str, bytes]) -> Message:
    """The message of a content header with these properties, each given as its bytes on the wire."""
    read_leniently()
    mask = sum(Basic.Properties.flags[name] for name in flags)
    ordered = b"".join(flags[name] for name in Basic.Properties.__slots__ if name in flags)
    payload = PREFIX.pack(60, 0, 0) + struct.pack(">H", mask) + ordered
    _, _, header = frame.unmarshal(struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce")
    assert isinstance(header, ContentHeader)
    return from_properties(header.properties, b"{}")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("message_id", "message_id"),
        ("correlation_id", "correlation_id"),
        ("reply_to", "reply_to"),
        ("message_type", "type"),
        ("content_type", "content_type"),
        ("app_id", "app_id"),
    ],
)
def test_property_that_is_not_utf8_is_left_out_and_named(name: str, ours: str) -> None:
    message = _received({name: _short(b"\xff\xfeabc")})

    assert getattr(message, ours) is None
    assert ours in message.headers[UNDECODABLE]


def test_what_can_be_read_beside_it_is_read() -> None:
    message = _received(
        {"message_id": _short(b"\xff"), "reply_to": _short(b"answers"), "headers": _table(b"\x01aI\0\0\0\7")}
    )

    assert (message.reply_to, message.headers["a"]) == ("answers", 7)


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        (b"\x01\xfft\x01", "utf-8"),
        (nested(5_000), "nested"),
        (void_array(MAX_TABLE_BYTES), "bytes"),
        (b"\x01a?", "Unknown type"),
        (b"\x05ab", "key length"),
        (b"\x01aS\xff\xff\xff\xff", ""),
    ],
    ids=["name not UTF-8", "nested", "too large", "unknown type", "cut off", "longer than it is"],
)
def test_table_that_cannot_be_read_is_marked_and_refused_as_a_task(encoded: bytes, why: str) -> None:
    message = _received({"headers": _table(encoded), "reply_to": _short(b"answers")})

    assert message.reply_to == "answers"
    if why:
        assert why in message.headers[UNDECODABLE]
        with pytest.raises(InvalidTask):
            read_task(message, "code.review.p1")


@pytest.mark.parametrize("instant", [2**63 - 1, 2**64 - 1, 1_700_000_000_000_000_000])
def test_time_beyond_the_calendar_is_its_number(instant: int) -> None:
    packed = struct.pack(">Q", instant)

    message = _received({"timestamp": packed, "headers": _table(b"\x01aT" + packed)})

    assert message.headers == {"a": instant}


def test_ordinary_message_is_read_as_before() -> None:
    sent: dict[str, Any] = {
        "headers": {"a": 1, "b": "ünïcödé"},
        "message_id": "m",
        "reply_to": "r",
        "message_type": "t",
    }
    header = ContentHeader(0, 2, Basic.Properties(**sent))

    _, _, received = frame.unmarshal(frame.marshal(header, 1))
    assert isinstance(received, ContentHeader)
    message = from_properties(received.properties, b"{}")

    assert (message.message_id, message.reply_to, message.type) == ("m", "r", "t")
    assert message.headers == sent["headers"]


@given(st.binary(max_size=400))
def test_no_table_of_bytes_ends_the_connection(encoded: bytes) -> None:
    message = _received({"headers": _table(encoded)})

    assert isinstance(message, Message)


@given(
    st.dictionaries(st.sampled_from(["message_id", "correlation_id", "reply_to", "app_id"]), st.binary(max_size=255))
)
def test_no_property_of_bytes_ends_the_connection(given_bytes: dict[str, bytes]) -> None:
    message = _received({name: _short(value) for name, value in given_bytes.items()})

    assert isinstance(message, Message)
