"""What we write is what pamqp writes, and what pamqp reads; what pamqp reads is what we read."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from coditect.broker.rabbitmq.codec import SettledRange, Settlement, publish_frames, settle_frame
from coditect.broker.rabbitmq.fields import (
    PERSISTENT,
    UNSPEAKABLE,
    from_properties,
    read_message,
    sendable,
    write_properties,
)
from coditect.model.message import Message, SharedHeaders, TemplateHeaders
from coditect.wire.tasks import PUBLISHED_AT
from tests.unit.broker.direct.written import FRAME_MAX, exchanges, field_values, names, properties, short_texts

PREFIX = struct.Struct(">HHQ")
_optional = st.none() | short_texts
messages = st.builds(
    Message,
    body=st.binary(max_size=3 * FRAME_MAX),
    headers=st.dictionaries(names, field_values, max_size=5),
    message_id=_optional,
    correlation_id=_optional,
    reply_to=_optional,
    type=_optional,
    content_type=_optional,
    expiration_ms=st.none() | st.integers(0, 2**40),
    app_id=_optional,
)


def by_pamqp(header: bytes, body: bytes) -> Message:
    """The message as pamqp reads it; raises where pamqp refuses it."""
    content = ContentHeader()
    content.unmarshal(header)
    return from_properties(content.properties, body)


def to_properties(message: Message) -> Basic.Properties:
    """A message's properties and headers as pamqp's own, always persistent."""
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


def ordered(message: Message) -> Message:
    """pamqp sorts the headers; their order has no meaning."""
    return Message(**{**_fields(message), "headers": dict(sorted(message.headers.items()))})


def _fields(message: Message) -> dict[str, Any]:
    return {one.name: getattr(message, one.name) for one in fields(Message)}


@given(messages)
def test_properties_are_written_byte_for_byte_as_pamqp_writes_them(message: Message) -> None:
    message = ordered(message)

    assert write_properties(message) == to_properties(message).marshal()


@given(messages)
def test_what_was_written_reads_as_what_was_meant(message: Message) -> None:
    header = PREFIX.pack(60, 0, len(message.body)) + write_properties(message)

    read = read_message(header, message.body)

    assert read == by_pamqp(header, message.body)
    for name in ("message_id", "correlation_id", "reply_to", "type", "content_type", "app_id"):
        assert getattr(read, name) == (getattr(message, name) or None)
    assert (read.expiration_ms, read.body) == (message.expiration_ms, message.body)
    assert read.headers.keys() == message.headers.keys()


own_headers = st.dictionaries(names, field_values, max_size=5)


@given(messages, own_headers)
def test_headers_of_a_template_are_written_as_others_are(message: Message, own: dict[str, Any]) -> None:
    plain = replace(message, headers={**message.headers, **own})
    shared = {name: value for name, value in message.headers.items() if name not in own}
    templated = replace(message, headers=TemplateHeaders(SharedHeaders(shared), own))
    uncorrelated = replace(templated, reply_to=None, message_id=None, expiration_ms=None)

    for one in (templated, uncorrelated, uncorrelated):  # the second is written again, the third from the template
        header = PREFIX.pack(60, 0, 0) + write_properties(one)
        assert read_message(header, b"") == by_pamqp(header, b"")
        assert ordered(read_message(header, b"")) == ordered(
            by_pamqp(PREFIX.pack(60, 0, 0) + to_properties(one).marshal(), b"")
        )
    assert dict(templated.headers) == plain.headers


ordinary = st.builds(
    Message,
    body=st.binary(max_size=20),
    headers=st.builds(dict, st.tuples(st.tuples(st.just(PUBLISHED_AT), st.integers(-(2**63), 2**63 - 1)))),
    message_id=_optional,
    correlation_id=_optional,
    reply_to=_optional,
    type=_optional,
    app_id=_optional,
)


@given(ordinary)
@example(Message(b"", {PUBLISHED_AT: 1_763_000_000_000}))
def test_ordinary_task_is_read_as_pamqp_reads_it(message: Message) -> None:
    header = PREFIX.pack(60, 0, len(message.body)) + to_properties(message).marshal()

    assert read_message(header, message.body) == by_pamqp(header, message.body)


@given(properties)
def test_every_combination_of_properties_is_read_as_pamqp_reads_it(of: Basic.Properties) -> None:
    header = PREFIX.pack(60, 0, 0) + of.marshal()

    assert read_message(header, b"x") == by_pamqp(header, b"x")


@given(properties, st.integers(0, 400), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_damaged_properties_are_read_as_pamqp_reads_them_where_it_does(
    of: Basic.Properties, length: int, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(of.marshal())
    for at, value in changes:
        damaged[at % len(damaged)] = value
    header = PREFIX.pack(60, 0, 0) + bytes(damaged[:length])

    read = read_message(header, b"x")

    with suppress(ValueError, ArithmeticError, struct.error):  # what pamqp refuses is marked, and nothing is raised
        assert repr(read) == repr(by_pamqp(header, b"x"))


@given(st.binary(max_size=400))
@example(b"")
@example(PREFIX.pack(60, 0, 0))
def test_no_header_of_bytes_raises(header: bytes) -> None:
    assert isinstance(read_message(header, b""), Message)


@given(
    messages,
    st.integers(1, 65_535),
    exchanges,
    short_texts,
    st.sampled_from([0, 1, FRAME_MAX - 9, FRAME_MAX - 8, FRAME_MAX - 7, 2 * (FRAME_MAX - 8), 3 * FRAME_MAX]),
)
def test_published_frames_are_read_back_by_pamqp(
    message: Message, channel: int, exchange: str, key: str, size: int
) -> None:
    message = Message(**{**_fields(message), "body": b"x" * size})
    frame_max = max(FRAME_MAX, 12 + len(write_properties(message)) + 8)

    stream = b"".join(publish_frames(channel, message, exchange, key, frame_max=frame_max))
    [method, header, *bodies] = _unmarshaled(stream, channel, frame_max)

    assert isinstance(method, Basic.Publish) and isinstance(header, ContentHeader)
    assert (method.exchange, method.routing_key, method.mandatory, method.immediate) == (exchange, key, True, False)
    assert header.body_size == size
    assert header.properties.marshal() == to_properties(message).marshal()
    assert b"".join(one.value for one in bodies if isinstance(one, ContentBody)) == message.body
    assert len(bodies) == -(-size // (frame_max - 8))


def _unmarshaled(stream: bytes, channel: int, frame_max: int) -> list[Any]:
    found = []
    while stream:
        consumed, number, one = frame.unmarshal(stream)
        assert number == channel and (consumed <= frame_max or isinstance(one, Basic.Publish))
        found.append(one)
        stream = stream[consumed:]
    return found


@given(st.integers(1, 65_535), st.integers(0, 2**64 - 1), st.sampled_from(Settlement), st.booleans())
@example(1, 2**63 + 5, Settlement.ACK, True)
def test_settlement_is_read_back_by_pamqp(channel: int, tag: int, verdict: Settlement, multiple: bool) -> None:
    written = settle_frame(channel, SettledRange(tag, verdict, multiple))

    consumed, number, read = frame.unmarshal(written)

    assert (consumed, number) == (len(written), channel)
    assert isinstance(read, Basic.Ack if verdict is Settlement.ACK else Basic.Nack)
    assert int.from_bytes(written[11:19], "big") == tag  # pamqp reads a tag of 2^63 and more as a negative number
    assert read.multiple is multiple
    if isinstance(read, Basic.Nack):
        assert read.requeue is (verdict is Settlement.REQUEUE)


def _deep() -> dict[str, Any]:
    table: dict[str, Any] = {}
    for _ in range(100_000):
        table = {"a": table}
    return table


@pytest.mark.parametrize(
    "wrong",
    [
        Message(b"", {"a": 2**63}),
        Message(b"", {"a": object()}),
        Message(b"", {"a": 1e300}),
        Message(b"", {"a": "\ud800"}),
        Message(b"", {1: "a"}),  # type: ignore[dict-item]
        Message(b"", message_id="x" * 256),
        Message(b"", message_id=5),  # type: ignore[arg-type]
        Message(b"", expiration_ms=10**300),
        Message(b"", _deep()),
    ],
    ids=range(9),
)
def test_what_amqp_cannot_carry_is_refused_on_both_paths(wrong: Message) -> None:
    with pytest.raises(UNSPEAKABLE):
        to_properties(wrong).marshal()
    with pytest.raises(UNSPEAKABLE):
        write_properties(wrong)


def test_name_of_a_header_is_never_cut_off() -> None:
    longest = Message(b"", {"n" * 255: 1})

    assert read_message(PREFIX.pack(60, 0, 0) + write_properties(longest), b"") == longest
    with pytest.raises(UNSPEAKABLE):
        write_properties(Message(b"", {"n" * 256: 1}))


def test_headers_that_do_not_fit_into_a_frame_are_refused() -> None:
    with pytest.raises(UNSPEAKABLE):
        publish_frames(1, Message(b"", {"a": "x" * 5_000}), "", "q", frame_max=4_096)
