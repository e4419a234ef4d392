"""The probe of a silent connection: one at a time, answered once, and none of the library's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError

from coditect.broker.rabbitmq import stream as stream_module
from coditect.broker.rabbitmq.codec import FLOW_OK, METHOD
from coditect.broker.rabbitmq.stream import LivenessProbe

CLOSE, CLOSE_OK, OPEN_OK = b"\x00\x14\x00\x28", b"\x00\x14\x00\x29", b"\x00\x14\x00\x0b"


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


@dataclass
class FakeChannel:
    """Open until it is closed."""

    number: int
    closing: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def is_closed(self) -> bool:
        return self.closing.done()


class Scene:
    """A probe on a connection whose channels are the numbers from 7 on."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.channels: list[FakeChannel] = []
        self.gone = False
        """Whether the connection opens no more channels."""
        connection: Any = None
        stream: Any = self.lines
        self.probe = LivenessProbe(connection, stream)

    async def open(self, connection: object) -> FakeChannel:
        if self.gone:
            raise ChannelInvalidStateError
        self.channels.append(FakeChannel(7 + len(self.channels)))
        return self.channels[-1]

    async def lose(self) -> None:
        self.channels[-1].closing.set_result(None)
        await asyncio.sleep(0)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene()
    monkeypatch.setattr(stream_module, "open_channel", scene.open)
    await scene.probe.open()
    return scene


async def test_probe_is_sent_once_until_it_is_answered_and_ends_with_its_channel(scene: Scene) -> None:
    probe, lines = scene.probe, scene.lines

    first = probe.send()
    assert probe.send() is first
    assert lines.written == [b"\x01\x00\x07\x00\x00\x00\x05\x00\x14\x00\x14\x01\xce"]
    assert not probe.take(METHOD, OPEN_OK), "what is no answer is the library's to know"
    assert not first.done()
    assert probe.take(METHOD, FLOW_OK + b"\x01")
    assert first.result()
    assert probe.take(METHOD, FLOW_OK + b"\x01"), "a second answer is nobody's, least of all the library's"

    second = probe.send()
    await scene.lose()

    assert len(lines.written) == 2
    assert second.cancelled()
    assert lines.attached == {}


@pytest.mark.parametrize("method", [CLOSE, CLOSE_OK])
async def test_nothing_is_written_on_a_channel_whose_end_was_read_and_the_library_did_not_see_yet(
    scene: Scene, method: bytes
) -> None:
    probe, lines = scene.probe, scene.lines
    asked = probe.send()

    assert not probe.take(METHOD, method), "that the channel ends is the library's to know"
    again = probe.send()

    assert asked.cancelled()
    assert await again, "that the broker opens a channel is an answer"
    assert (len(lines.written), lines.attached) == (1, {8: probe})
    scene.channels[0].closing.set_result(None)
    await asyncio.sleep(0)
    assert lines.attached == {8: probe}, "the late end of the first channel changes nothing"


async def test_probe_of_a_lost_channel_is_sent_over_a_new_one(scene: Scene) -> None:
    await scene.lose()

    reopened = scene.probe.send()
    assert scene.probe.send() is reopened
    assert await reopened, "that the broker opens a channel is an answer"
    answer = scene.probe.send()

    assert scene.lines.attached == {8: scene.probe}
    assert scene.lines.written == [b"\x01\x00\x08\x00\x00\x00\x05\x00\x14\x00\x14\x01\xce"]
    assert scene.probe.take(METHOD, FLOW_OK + b"\x01")
    assert answer.result()


async def test_probe_of_a_lost_connection_is_answered_with_no(scene: Scene) -> None:
    scene.gone = True
    await scene.lose()

    assert not await scene.probe.send()
