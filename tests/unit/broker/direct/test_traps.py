"""The traps of direct frames, numbered as in docs/adr/0009-direct-frames.md, without a broker.

Those that need one are in tests/integration/broker/test_frames.py and tests/faults.
"""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import pytest
from pamqp import frame
from pamqp.commands import Basic, Channel, Connection
from pamqp.heartbeat import Heartbeat

from coditect.broker.rabbitmq import consumer_channel as inlet_module
from coditect.broker.rabbitmq.fields import read_message
from coditect.broker.rabbitmq.publisher_channel import PublisherChannel, PublishRefused, PublishReturned
from coditect.broker.rabbitmq.stream import CONGESTED_BYTES, HEARTBEAT_FRAME, HEARTBEAT_SECONDS
from coditect.model.message import JSON
from tests.unit.broker.direct.wire import Wire, ack, ended, publish, returned

HIGH = 2**63 - 10
"""Numbers begin here where pamqp's own would turn negative soon."""

SENT: dict[str, Any] = {"content_type": JSON, "delivery_mode": 2}
"""What each message of ours has among its properties."""


class SlowClock(asyncio.SelectorEventLoop):
    """A loop whose time the test sets."""

    now = 1_000.0

    def time(self) -> float:
        return self.now


def test_trap_1_library_gets_a_heartbeat_once_a_second_while_all_that_comes_is_ours() -> None:
    loop = SlowClock()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_trap_1(loop))


async def _trap_1(loop: SlowClock) -> None:
    wire = Wire()
    wire.publisher_channel()
    confirms = [ack(number) for number in range(1, 31)]

    passed = []
    for confirm in confirms:
        loop.now += HEARTBEAT_SECONDS / 10
        passed.append(wire.say(confirm))
    real = wire.say(Heartbeat().marshal())
    quiet = wire.say(confirms[0])

    assert set(passed) == {b"", HEARTBEAT_FRAME}
    assert 2 <= passed.count(HEARTBEAT_FRAME) <= 3
    assert (real, quiet) == (Heartbeat().marshal(), b"")


async def test_trap_1_heartbeat_is_never_put_into_the_middle_of_a_frame_of_the_librarys(wire: Wire) -> None:
    wire.stream._passed_at -= 10
    whole = frame.marshal(Channel.Close(404, "NOT_FOUND" * 10, 0, 0), 5)

    passed = [wire.say(whole[at : at + 1]) for at in range(len(whole))]

    assert b"".join(passed) == HEARTBEAT_FRAME + whole
    assert passed[-1] == whole


async def test_trap_2_returned_message_is_no_success_and_its_neighbours_are(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    keys = ["here", "nowhere", "here", "nowhere", "here"]
    publishes = [publish(publisher_channel, key, "the same id") for key in keys]

    wire.say(returned("nowhere", "the same id"), returned("nowhere", "the same id"), ack(5, multiple=True))

    assert ended(publishes) == [None, PublishReturned, None, PublishReturned, None]


async def test_trap_2_key_whose_queue_went_away_fails_only_what_came_back(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    publishes = [publish(publisher_channel, "q", name) for name in ("arrived", "came back", "arrived, too")]

    wire.say(returned("q", "came back"), ack(2), ack(1), ack(3))

    assert ended(publishes) == [None, PublishReturned, None]


@pytest.mark.parametrize("added", [None, {"timestamp_in_ms": 1}], ids=["as sent", "with a header of the broker's"])
@pytest.mark.parametrize("name", [None, "the same id"])
async def test_trap_2_message_came_back_not_its_like_that_the_queue_got_before(
    wire: Wire, name: str | None, added: dict[str, Any] | None
) -> None:
    publisher_channel = wire.publisher_channel()
    publishes = [publish(publisher_channel, "q", name, body) for body in (b"arrived", b"came back")]

    wire.say(returned("q", name, body=b"came back", headers=added, **SENT), ack(2, multiple=True))

    assert ended(publishes) == [None, PublishReturned]


async def test_trap_2_answer_came_back_not_one_of_equal_body_to_another_request(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    publishes = [publish(publisher_channel, correlation_id=one) for one in ("arrived", "came back")]

    wire.say(returned("q", None, correlation_id="came back", **SENT), ack(2, multiple=True))

    assert ended(publishes) == [None, PublishReturned]


async def test_trap_2_return_may_be_split_from_its_ack_and_has_no_id(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    publishes = [publish(publisher_channel, "nowhere"), publish(publisher_channel, "here")]
    said = returned("nowhere", None) + ack(2, multiple=True)

    for at in range(len(said)):
        assert wire.say(said[at : at + 1]) == b""

    assert ended(publishes) == [PublishReturned, None]


@pytest.mark.parametrize("start", [0, HIGH, 2**64 - 120], ids=["from the start", "about 2^63", "about 2^64"])
async def test_trap_3_multiple_covers_the_prefix_only(wire: Wire, start: int) -> None:
    publisher_channel = wire.publisher_channel(sequence=start)
    publishes = [publish(publisher_channel) for _ in range(20)]

    wire.say(ack(start + 3))
    wire.say(ack(start + 5, multiple=True))
    first = ended(publishes)
    wire.say(ack(start + 15, multiple=True, taken=False), ack(start + 5, multiple=True), ack(start + 99))

    assert first == [None] * 5 + ["waits"] * 15
    assert ended(publishes) == [None] * 5 + [PublishRefused] * 10 + ["waits"] * 5


async def test_trap_5_acks_of_one_turn_are_one_frame_and_leave_a_slow_delivery_out(wire: Wire) -> None:
    _, held = wire.consuming()
    for tag in range(HIGH, HIGH + 20):
        wire.deliver(tag, "c")

    slow = held.deliveries[10]
    for delivery in held.deliveries:
        if delivery is not slow:
            delivery.ack()
    first = await wire.sent()
    slow.ack()
    second = await wire.sent()

    tags = [int.from_bytes(one.marshal()[:8], "big") for one in first + second]
    assert all(isinstance(one, Basic.Ack) for one in first + second)
    assert [getattr(one, "multiple", None) for one in first] == [True] + [False] * 9
    assert tags[0] == HIGH + 9
    assert tags[-1] == HIGH + 10
    assert sorted(tags[1:]) == list(range(HIGH + 10, HIGH + 20))
    assert held.unsettled == 0


async def test_trap_5_verdicts_that_are_no_acks_are_never_covered(wire: Wire) -> None:
    _, held = wire.consuming()
    for tag in range(1, 6):
        wire.deliver(tag, "c")

    for delivery, verdict in zip(held.deliveries, ["ack", "requeue", "ack", "reject", "ack"], strict=True):
        getattr(delivery, verdict)()
    [first, *rest] = await wire.sent()

    assert isinstance(first, Basic.Ack) and (first.delivery_tag, first.multiple) == (1, True)
    told = [(type(one), one.delivery_tag, one.multiple, getattr(one, "requeue", None)) for one in _settled(rest)]
    assert told == [
        (Basic.Nack, 2, False, True),
        (Basic.Ack, 3, False, None),
        (Basic.Nack, 4, False, False),
        (Basic.Ack, 5, False, None),
    ]


def _settled(frames: list[Any]) -> list[Basic.Ack | Basic.Nack]:
    return [one for one in frames if isinstance(one, Basic.Ack | Basic.Nack)]


async def test_trap_5_delivery_that_nobody_wants_goes_back_and_is_not_covered_by_a_later_ack(wire: Wire) -> None:
    _, held = wire.consuming()
    wire.deliver(1, "unknown")
    wire.deliver(2, "c")

    held.deliveries[0].ack()
    sent = await wire.sent()

    assert [(type(one), one.delivery_tag, one.multiple) for one in _settled(sent)] == [
        (Basic.Nack, 1, False),
        (Basic.Ack, 2, False),
    ]


async def test_trap_5_nothing_is_settled_twice_or_unknown(wire: Wire) -> None:
    _, held = wire.consuming()
    wire.deliver(1, "c")

    held.deliveries[0].ack()
    held.deliveries[0].reject()
    first = await wire.sent()
    held.deliveries[0].requeue()

    assert len(first) == 1
    assert await wire.sent() == []


async def test_trap_6_closed_channel_fails_what_waits_and_its_successor_counts_from_one(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel(1)
    publishes = [publish(publisher_channel) for _ in range(3)]
    wire.channels[1].closing.set_exception(ConnectionError("gone"))
    await asyncio.sleep(0)
    told = ended(publishes)

    successor = wire.publisher_channel(1)
    again = publish(successor)
    wire.say(ack(1))

    assert told == [ConnectionError] * 3
    assert publisher_channel.closed and not publisher_channel.ready
    assert again.done() and again.exception() is None


async def test_trap_6_nothing_is_written_behind_the_end_of_a_channel(wire: Wire) -> None:
    """The library answers `channel.close`; a frame of that channel behind the answer ends the connection."""
    publisher_channel, (consumer_channel, held) = wire.publisher_channel(1), wire.consuming(2)
    wire.deliver(1, "c", number=2)
    waiting = publish(publisher_channel)
    await wire.sent()
    held.deliveries[0].ack()
    close = [frame.marshal(Channel.Close(404, "gone", 0, 0), number) for number in (1, 2)]

    passed = wire.say(*close)

    assert passed == b"".join(close)
    assert await wire.sent() == []
    assert held.deliveries[0].lost and consumer_channel.settlements.lost
    assert publisher_channel.closed and not publisher_channel.ready
    assert not waiting.done(), "the library says why"


async def test_trap_6_delivery_tags_of_the_channel_before_are_void(wire: Wire) -> None:
    before, held = wire.consuming()
    wire.deliver(1, "c")
    before.lose()
    after = wire.consumer_channel(1)
    after._consumers[b"c"] = held
    wire.deliver(1, "c")

    held.deliveries[0].ack()
    nothing = await wire.sent()
    held.deliveries[1].ack()

    assert nothing == []
    assert len(await wire.sent()) == 1


async def test_trap_6_late_end_of_a_channel_does_not_touch_the_one_that_has_its_number_now(wire: Wire) -> None:
    before = wire.publisher_channel(1)
    closing = wire.channels[1].closing
    wire.say(frame.marshal(Channel.Close(404, "gone", 0, 0), 1))
    after = wire.publisher_channel(1)
    publishing = publish(after)

    closing.set_exception(ConnectionError())
    await asyncio.sleep(0)
    wire.say(ack(1))

    assert before.closed and not after.closed
    assert ended([publishing]) == [None]


async def test_trap_7_frame_that_cannot_be_read_gives_the_connection_up_and_raises_nothing(wire: Wire) -> None:
    wire.publisher_channel()
    broken = b"\x01\x00\x01\x00\x00\x00\x05\x00\x3c\x00\x50\x00\xce"  # an ack without its tag

    passed = wire.say(broken)

    assert passed == b""
    assert wire.transport.closing
    assert wire.say(Heartbeat().marshal()) == b""


async def test_trap_7_routing_key_that_is_not_utf8_hurts_nobody(wire: Wire) -> None:
    _, held = wire.consuming()
    payload = b"\x00\x3c\x00\x3c\x01c" + bytes(7) + b"\x01\x00" + b"\x00" + b"\x02\xff\xfe"
    method = b"\x01\x00\x01" + len(payload).to_bytes(4, "big") + payload + b"\xce"
    header = b"\x02\x00\x01\x00\x00\x00\x0e" + b"\x00\x3c" + bytes(12) + b"\xce"

    wire.say(method, header)
    wire.deliver(2, "c", b"next")

    assert [one.routing_key for one in held.deliveries] == ["\\xff\\xfe", "q"]
    assert held.deliveries[1].message.body == b"next"


async def test_trap_8_publishes_wait_while_the_broker_reads_slowly(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    ready = publisher_channel.ready
    wire.transport.held = CONGESTED_BYTES + 1
    wire.transport.flowing.clear()
    publish(publisher_channel)
    await asyncio.sleep(0)
    congested = not publisher_channel.ready and not await publisher_channel.wait_for_room()
    gate = asyncio.ensure_future(publisher_channel.wait_for_room())
    await asyncio.sleep(0)

    wire.transport.held = 0
    wire.transport.flowing.set()

    assert ready and congested
    assert await gate and publisher_channel.ready


async def test_trap_8_what_one_turn_gathers_counts(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    body = b"x" * 1_000_000

    many = 0
    while publisher_channel.ready:
        publish(publisher_channel, body=body)
        many += 1

    assert many == CONGESTED_BYTES // len(body) + 1
    await wire.sent()
    assert publisher_channel.ready


async def test_trap_8_blocked_connection_is_respected(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    blocked = frame.marshal(Connection.Blocked("memory"), 0)

    passed = wire.say(blocked)
    held_back = not publisher_channel.ready and not await publisher_channel.wait_for_room()
    wire.say(frame.marshal(Connection.Unblocked(), 0))

    assert passed == blocked, "the library is told, too"
    assert held_back
    assert publisher_channel.ready and await publisher_channel.wait_for_room()


async def test_trap_9_small_frames_and_no_limit_of_frames() -> None:
    sizes = {}
    for frame_max in (4_096, 0):
        wire = Wire()
        publisher_channel = PublisherChannel(wire.channel(1), wire.stream, frame_max=frame_max)
        publish(publisher_channel, body=b"x" * 400_000)
        await asyncio.sleep(0)
        sizes[frame_max] = [len(frame_) for frame_ in _frames(wire.transport.sent)]

    assert max(sizes[4_096]) == 4_096
    assert max(sizes[0]) == 131_072


def _frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = int.from_bytes(data[3:7], "big") + 8
        found.append(data[:end])
        data = data[end:]
    return found


async def test_trap_11_headers_are_read_once_and_only_when_asked_for(wire: Wire) -> None:
    _, held = wire.consuming()
    with patch.object(inlet_module, "read_message", wraps=read_message) as read:
        wire.deliver(1, "c", b"x")
        wire.deliver(2, "c", b"y")
        untouched = read.call_count
        first, second = held.deliveries

        assert (untouched, first.message.body, first.delivery_count, read.call_count) == (0, b"x", 0, 1)
        second.ack()
        assert read.call_count == 1
