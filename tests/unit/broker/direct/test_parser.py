"""Every frame that pamqp writes is read alike, however the bytes arrive."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.commands import Basic, Channel

from coditect.broker.rabbitmq.codec import (
    BODY,
    HEADER,
    ContentAssembler,
    FrameParser,
    FramingError,
    read_deliver,
    read_return,
)
from tests.unit.broker.direct.written import ALSO_OURS, FRAME_MAX, OURS, Said, content, conversations, interleaved

Heard = list[tuple[Any, ...]]


class Listener:
    """Writes down what the cutter makes of one channel."""

    def __init__(self) -> None:
        self.heard: Heard = []
        self.contents = ContentAssembler(delivered=self._delivered, returned=self._returned, confirmed=self._confirmed)

    def _delivered(self, method: bytes, header: bytes, body: bytes) -> None:
        consumer, tag, redelivered, exchange, routing_key = read_deliver(method)
        said = ("deliver", consumer.decode(), tag, redelivered, exchange, routing_key)
        self.heard.append((*said, header[12:], body))

    def _returned(self, method: bytes, header: bytes, body: bytes) -> None:
        self.heard.append(("return", *read_return(method), header[12:], body))

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        self.heard.append(("confirm", tag, multiple, taken))


def hear(chunks: Iterable[bytes]) -> tuple[dict[int, Heard], list[bytes]]:
    listeners = {OURS: Listener(), ALSO_OURS: Listener()}
    cutter = FrameParser({number: one.contents for number, one in listeners.items()})
    passed = [cutter.feed(chunk) for chunk in chunks]
    return {number: one.heard for number, one in listeners.items()}, passed


def outcome(chunks: Iterable[bytes]) -> tuple[dict[int, Heard], bytes] | None:
    """What is heard, and what is passed on; None of a stream that is torn."""
    try:
        heard, passed = hear(chunks)
    except FramingError:
        return None
    return heard, b"".join(passed)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(stream) + 1) for cut in cuts})
    return [stream[start:end] for start, end in zip([0, *at], [*at, len(stream)], strict=True)]


def whole_frames(passed: bytes) -> bool:
    while passed:
        consumed, _, _ = frame.unmarshal(passed)
        passed = passed[consumed:]
    return True


def expected(said: list[Said], number: int) -> Heard:
    return [one.heard for one in said if one.channel == number and one.heard is not None]


@given(conversations, st.lists(st.integers(0, 50), max_size=30), st.lists(st.integers(0, 5_000), max_size=20))
def test_what_is_ours_is_heard_alike_and_the_rest_is_passed_on_whole_and_in_order(
    said: list[Said], choices: list[int], cuts: list[int]
) -> None:
    sent = list(interleaved(said, chain(choices, repeat(0))))

    heard, passed = hear(split(b"".join(written for _, written in sent), cuts))

    for number in (OURS, ALSO_OURS):
        assert heard[number] == expected(said, number)
    assert b"".join(passed) == b"".join(written for one, written in sent if one.heard is None)
    assert all(whole_frames(one) for one in passed)


def test_end_of_a_channel_in_the_middle_of_a_message_is_told_and_passed_on() -> None:
    told: list[str] = []
    contents = ContentAssembler(delivered=lambda *_: told.append("delivered"), closing=lambda: told.append("closing"))
    channels = {OURS: contents}
    cutter = FrameParser(channels)
    begun = content(OURS, Basic.Deliver("c", 1, False, "", "q"), Basic.Properties(), b"x" * 100)[:-1]
    close = frame.marshal(Channel.Close(404, "gone", 0, 0), OURS)

    passed = cutter.feed(b"".join((*begun, close)))
    channels[OURS] = ContentAssembler(delivered=lambda _, __, body: told.append(body.decode()))
    cutter.feed(b"".join(content(OURS, Basic.Deliver("c", 1, False, "", "q"), Basic.Properties(), b"next")))

    assert passed == close
    assert told == ["closing", "next"]


@pytest.mark.parametrize("kept", [[0, 2], [0, 1, 3]], ids=["no header", "too large"])
def test_body_that_is_not_due_is_torn_instead_of_read_with_an_earlier_header(kept: list[int]) -> None:
    of = Basic.Properties(message_id="earlier")
    whole = content(OURS, Basic.Deliver("c", 1, False, "", "q"), of, b"x" * (FRAME_MAX - 8))
    parts = content(OURS, Basic.Deliver("c", 2, False, "", "q"), Basic.Properties(), b"y" * (FRAME_MAX - 9))
    parts.append(whole[2])
    listener = Listener()
    cutter = FrameParser({OURS: listener.contents})
    cutter.feed(b"".join(whole))

    with pytest.raises(FramingError):
        for one in kept:
            cutter.feed(parts[one])

    assert [said[2] for said in listener.heard] == [1]


@pytest.mark.parametrize("told", ["header", "header and body", "all"])
@pytest.mark.parametrize("kind", [HEADER, BODY])
def test_frame_of_a_message_that_is_not_due_is_torn(told: str, kind: int) -> None:
    whole = content(OURS, Basic.Deliver("c", 1, False, "", "q"), Basic.Properties(), b"x" * 2 * (FRAME_MAX - 8))
    listener = Listener()
    cutter = FrameParser({OURS: listener.contents})
    assert cutter.feed(b"".join(whole[: {"header": 2, "header and body": 3, "all": 4}[told]])) == b""
    due = kind == BODY and told != "all"

    try:
        cutter.feed(whole[1] if kind == HEADER else whole[-1])
    except FramingError:
        assert not due
    else:
        assert due


@pytest.mark.parametrize("together", [True, False])
def test_method_ends_a_message_that_is_not_complete(together: bool) -> None:
    begun = content(OURS, Basic.Deliver("c", 1, False, "", "q"), Basic.Properties(), b"x" * 2 * (FRAME_MAX - 8))[:3]
    whole = content(OURS, Basic.Deliver("c", 2, False, "", "q"), Basic.Properties(), b"y" * 2 * (FRAME_MAX - 8))
    small = content(OURS, Basic.Deliver("c", 3, False, "", "q"), Basic.Properties(), b"z")
    listener = Listener()
    cutter = FrameParser({OURS: listener.contents})

    for part in ([*begun, *whole], [*begun, *small]):
        assert b"".join(cutter.feed(one) for one in ([b"".join(part)] if together else part)) == b""

    assert [(one[2], one[-1]) for one in listener.heard] == [(2, b"y" * 2 * (FRAME_MAX - 8)), (3, b"z")]


def test_message_of_a_method_that_was_passed_on_is_passed_on_whole_and_the_next_delivery_is_ours() -> None:
    foreign = b"".join(content(OURS, Basic.GetOk(1, False, "", "q", 0), Basic.Properties(), b"x"))
    ours = b"".join(content(OURS, Basic.Deliver("c", 2, False, "", "q"), Basic.Properties(), b"y"))
    listener = Listener()
    cutter = FrameParser({OURS: listener.contents})

    assert cutter.feed(foreign + ours + foreign) == foreign * 2
    assert [one[-1] for one in listener.heard] == [b"y"]


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_is_torn_or_read_alike_however_it_arrives(chunks: list[bytes]) -> None:
    assert outcome(chunks) == outcome([b"".join(chunks)])


@given(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([b"", b"\x00<\x00<", b"\x00<\x00P", b"\x00<\x00x", b"\x00<\x002"]),
    st.binary(max_size=20),
)
def test_frame_of_garbage_on_our_channel_is_torn_or_read_alike_byte_by_byte(
    kind: int, method: bytes, rest: bytes
) -> None:
    payload = method + rest
    begun = content(OURS, Basic.Deliver("c", 1, False, "", "q"), Basic.Properties(), b"")[0]
    garbage = bytes([kind, 0, OURS]) + len(payload).to_bytes(4, "big") + payload + b"\xce"
    for stream in (garbage, begun + garbage):
        assert outcome(stream[at : at + 1] for at in range(len(stream))) == outcome([stream])


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x3c\x00",
        b"\x03\x00\x01\xff\xff\xff\xff" + b"x" * 20,
    ],
    ids=["another protocol", "no end", "a frame of 4 GB"],
)
def test_stream_that_is_no_sequence_of_frames_is_torn(stream: bytes) -> None:
    with pytest.raises(FramingError):
        hear([stream])
