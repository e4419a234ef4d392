"""The question by which a silent connection is tried: one at a time, answered once, and none of the library's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from coditect.broker.rabbitmq.frames.codec import FLOW_OK, METHOD
from coditect.broker.rabbitmq.frames.question import Question

CLOSED = b"\x00\x14\x00\x28"


class Lines:
    """A stream that keeps what is written, and the channels that are attached."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.attached: dict[int, object] = {}

    def write(self, pieces: list[bytes]) -> None:
        self.written += pieces

    def attach(self, number: int, channel: object) -> None:
        self.attached[number] = channel

    def detach(self, number: int, channel: object) -> None:
        assert self.attached.pop(number) is channel


async def test_question_is_asked_once_until_it_is_answered_and_ends_with_its_channel() -> None:
    lines, closing = Lines(), asyncio.get_running_loop().create_future()
    channel: Any = SimpleNamespace(number=7, closing=closing)
    stream: Any = lines
    question = Question(channel, stream)

    first = question.ask()
    assert question.ask() is first
    assert lines.written == [b"\x01\x00\x07\x00\x00\x00\x05\x00\x14\x00\x14\x01\xce"]
    assert not question.take(METHOD, CLOSED), "that the channel ends is the library's to know"
    assert not first.done()
    assert question.take(METHOD, FLOW_OK + b"\x01")
    assert first.result()
    assert question.take(METHOD, FLOW_OK + b"\x01"), "a second answer is nobody's, least of all the library's"

    second = question.ask()
    closing.set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert len(lines.written) == 2
    assert second.cancelled()
    assert lines.attached == {}
