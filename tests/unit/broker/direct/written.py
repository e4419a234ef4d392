"""Frames as pamqp writes them, with what they mean: the measure of our own cutting and encoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from pamqp import frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

FRAME_MAX = 40
"""Small, so that bodies of a hundred bytes have several frames; `FRAME_MAX - 8` bytes of a body fit into one."""
OURS, ALSO_OURS, FOREIGN = 1, 300, 2

short_texts = st.text(max_size=40)
exchanges = st.text("abc-_.:XYZ019", max_size=40)
"""What pamqp lets an exchange be named."""
instants = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(
    lambda one: one.replace(microsecond=0, tzinfo=UTC)
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(width=32, allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20).map(bytearray)
    | st.integers(-(2**20), 2**20).map(lambda cents: Decimal(abs(cents)).scaleb(-2))
    | instants
)
names = st.text(max_size=20)
field_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
"""Every kind of value that pamqp writes into a table."""
tables = st.dictionaries(names, field_values, max_size=5)

properties = st.builds(
    Basic.Properties,
    content_type=st.none() | short_texts,
    content_encoding=st.none() | short_texts,
    headers=st.none() | tables,
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | short_texts,
    reply_to=st.none() | short_texts,
    expiration=st.none() | st.integers(0, 2**40).map(str) | short_texts,
    message_id=st.none() | short_texts,
    timestamp=st.none() | instants,
    message_type=st.none() | short_texts,
    user_id=st.none() | short_texts,
    app_id=st.none() | short_texts,
)
"""Every combination of properties."""

bodies = st.sampled_from([0, 1, FRAME_MAX - 9, FRAME_MAX - 8, FRAME_MAX - 7, 2 * (FRAME_MAX - 8), 100]).flatmap(
    lambda size: st.binary(min_size=size, max_size=size)
)
tags = st.integers(0, 2**63 - 1)
"""pamqp takes them for signed numbers."""


@dataclass(frozen=True)
class Said:
    """What one or several frames of a channel say, and their bytes; `heard` is None for what is not ours to take."""

    channel: int
    frames: list[bytes] = field(repr=False)
    heard: tuple[Any, ...] | None = None


def content(channel: int, method: Frame, of: Basic.Properties, body: bytes) -> list[bytes]:
    """A message as frames, split at `FRAME_MAX`."""
    parts = [body[at : at + FRAME_MAX - 8] for at in range(0, len(body), FRAME_MAX - 8)]
    whole: list[Frame | ContentHeader | ContentBody] = [method, ContentHeader(0, len(body), of)]
    return [frame.marshal(one, channel) for one in [*whole, *map(ContentBody, parts)]]


def _deliver(
    channel: int, tag: int, redelivered: bool, texts: tuple[str, str, str], of: Basic.Properties, body: bytes
) -> Said:
    consumer, exchange, key = texts
    method = Basic.Deliver(consumer, tag, redelivered, exchange, key)
    heard = ("deliver", consumer, tag, redelivered, exchange, key, of.marshal(), body)
    return Said(channel, content(channel, method, of, body), heard)


def _return(channel: int, texts: tuple[str, str, str], of: Basic.Properties, body: bytes) -> Said:
    reason, exchange, key = texts
    method = Basic.Return(312, reason, exchange, key)
    return Said(channel, content(channel, method, of, body), ("return", exchange, key, of.marshal(), body))


def _confirm(channel: int, tag: int, multiple: bool, taken: bool) -> Said:
    method = Basic.Ack(tag, multiple) if taken else Basic.Nack(tag, multiple)
    return Said(channel, [frame.marshal(method, channel)], ("confirm", tag, multiple, taken))


def _rare(channel: int, method: Frame) -> Said:
    return Said(channel, [frame.marshal(method, channel)])


_our_channels = st.sampled_from([OURS, ALSO_OURS])
_three_texts = st.tuples(short_texts, exchanges, short_texts)
_ours = (
    st.builds(_deliver, _our_channels, tags, st.booleans(), _three_texts, properties, bodies)
    | st.builds(_return, _our_channels, _three_texts, properties, bodies)
    | st.builds(_confirm, _our_channels, tags, st.booleans(), st.booleans())
    | st.builds(_rare, _our_channels, st.sampled_from([Basic.ConsumeOk("c"), Basic.CancelOk("c"), Channel.OpenOk()]))
)


def _fetched(channel: int, of: Basic.Properties, body: bytes) -> Said:
    return Said(channel, content(channel, Basic.GetOk(1, False, "e", "k", 0), of, body))


_not_ours = (
    st.builds(_fetched, st.sampled_from([FOREIGN, OURS]), properties, bodies)
    | st.builds(_rare, st.just(FOREIGN), st.sampled_from([Basic.Ack(1, True), Channel.OpenOk()]))
    | st.just(Said(0, [Heartbeat().marshal()]))
    | st.builds(_rare, st.just(0), st.sampled_from([Connection.Blocked("memory"), Connection.Unblocked()]))
)
conversations = st.lists(_ours | _not_ours, max_size=8)


def interleaved(said: list[Said], choose: Iterator[int]) -> Iterator[tuple[Said, bytes]]:
    """The frames of all channels mixed; each channel's own keep their order."""
    queues: dict[int, list[tuple[Said, bytes]]] = {}
    for one in said:
        queues.setdefault(one.channel, []).extend((one, written) for written in one.frames)
    while queues:
        channels = sorted(queues)
        chosen = channels[next(choose) % len(channels)]
        yield queues[chosen].pop(0)
        if not queues[chosen]:
            del queues[chosen]
