"""Bytes that a stranger's message may be made of: read as far as they can be, and kept away from pamqp."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, frame
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq.fields import MAX_TABLE_BYTES, read_message
from coditect.broker.rabbitmq.stream import Readable, packed
from coditect.errors import BrokerUnavailable, InvalidTask
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
    payload = _content_header(flags)
    [header] = _passed(_framed(2, payload))
    assert isinstance(header, ContentHeader)
    assert packed(header) == payload
    return read_message(packed(header), b"{}")


def _content_header(flags: dict[str, bytes]) -> bytes:
    mask = sum(Basic.Properties.flags[name] for name in flags)
    ordered = b"".join(flags[name] for name in Basic.Properties.__slots__ if name in flags)
    return PREFIX.pack(60, 0, 0) + struct.pack(">H", mask) + ordered


def _framed(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def _passed(*arrived: bytes) -> list[Any]:
    """What aiormq gets of the frames, decoded by pamqp as published."""
    passed, found = Readable().frames(b"".join(arrived)), []
    while passed:
        consumed, number, one = frame.unmarshal(passed)
        assert number == 1
        found.append(one)
        passed = passed[consumed:]
    return found


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
def test_property_that_is_not_utf8_is_left_out_and_named_and_others_are_read(name: str, ours: str) -> None:
    message = _received({name: _short(b"\xff\xfeabc"), "headers": _table(b"\x01aI\0\0\0\7")})

    assert getattr(message, ours) is None
    assert ours in message.headers[UNDECODABLE]
    assert message.headers["a"] == 7


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
    [received] = _passed(frame.marshal(ContentHeader(0, 2, Basic.Properties(**sent)), 1))
    message = read_message(packed(received), b"{}")

    assert (message.message_id, message.reply_to, message.type) == ("m", "r", "t")
    assert message.headers == sent["headers"]
    assert received.body_size == 2


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


TAG, COUNT = struct.pack(">Q", 200), struct.pack(">I", 3)
METHODS = {
    "basic.deliver": (b"\0\x3c\0\x3c" + _short(b"c") + TAG + b"\1", ["exchange", "routing_key"], b""),
    "basic.get-ok": (b"\0\x3c\0\x47" + TAG + b"\1", ["exchange", "routing_key"], COUNT),
    "basic.return": (b"\0\x3c\0\x32\1\x38", ["reply_text", "exchange", "routing_key"], b""),
    "channel.close": (b"\0\x14\0\x28\1\x94", ["reply_text"], COUNT),
    "connection.close": (b"\0\x0a\0\x32\1\x40", ["reply_text"], COUNT),
}
"""The bytes before the texts that others write, the texts, and the bytes behind them."""


@pytest.mark.parametrize(("before", "names", "behind"), METHODS.values(), ids=METHODS)
@given(texts=st.lists(st.binary(max_size=255), min_size=3, max_size=3))
def test_texts_of_methods_that_are_not_utf8_are_escaped_and_cut(
    before: bytes, names: list[str], behind: bytes, texts: list[bytes]
) -> None:
    """RabbitMQ itself cuts a reason off in the middle of a letter."""
    texts = texts[: len(names)]

    [empty] = _passed(_framed(1, before + b"\0" * len(names) + behind))
    [passed] = _passed(_framed(1, before + b"".join(map(_short, texts)) + behind))

    for name, text in zip(names, texts, strict=True):
        escaped = text.decode(errors="backslashreplace").encode()[:255]
        assert getattr(passed, name) == escaped.decode(errors="ignore")
        setattr(passed, name, "")
    assert dict(passed) == dict(empty)


def test_returned_message_keeps_the_id_by_which_aiormq_finds_it() -> None:
    back = frame.marshal(Basic.Return(312, "NO_ROUTE", "e", "k"), 1)
    properties = {"headers": _table(void_array(MAX_TABLE_BYTES)), "message_id": _short(b"m")}
    header = _framed(2, _content_header(properties))

    _, returned, delivered = _passed(back, header, header)

    assert (returned.properties.message_id, returned.properties.headers) == ("m", None)
    assert packed(delivered) == _content_header(properties)


def test_other_frames_stay_as_they_are() -> None:
    methods = (Channel.OpenOk(), Basic.Ack(200, True), Basic.Deliver("c", 200, False, "", "ü"))
    frames = b"".join(frame.marshal(one, 1) for one in methods)

    assert Readable().frames(frames) is frames


async def test_pamqp_is_the_same_for_the_process_after_connecting() -> None:
    start = frame.marshal(Connection.Start(server_properties={"product": "RabbitMQ"}), 0)

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        writer.close()

    decoders = (dict(decode.METHODS), dict(decode.TABLE_MAPPING))
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BrokerUnavailable):
            async with AmqpBroker(f"amqp://127.0.0.1:{port}", connect_seconds=0.5):
                pass

    assert decoders == (decode.METHODS, decode.TABLE_MAPPING)
    with pytest.raises(UnicodeDecodeError):
        decode.by_type(b"\x01\xff", "shortstr")
