"""What becomes of an answer that cannot be sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from coditect.background import Background
from coditect.broker.port import Broker, Delivery
from coditect.errors import Overloaded, TooLarge
from coditect.model.message import Message
from coditect.model.wire import read_result
from dispatcher.control import Control
from tests.support import eventually


@dataclass
class Narrow:
    """A broker that takes no answer of more than 1,000 bytes; or nothing at all."""

    full: bool = False
    published: list[Message] = field(default_factory=list)

    async def publish(self, message: Message, **_: Any) -> None:
        if self.full:
            raise Overloaded("It is full")
        if len(message.body) > 1_000:
            raise TooLarge("It is over the broker's limit")
        self.published.append(message)


@dataclass
class Request:
    """A delivery, and what was done with it."""

    message: Message = field(default_factory=lambda: Message(b"{}", message_id="m", reply_to="reply.me"))
    settled: list[str] = field(default_factory=list)

    def ack(self) -> None:
        self.settled.append("ack")

    def requeue(self) -> None:
        self.settled.append("requeue")


async def answered(broker: Narrow, answer: Any) -> Request:
    request = Request()
    async with Background() as background:
        control = Control(cast("Broker", broker), cast("Any", None), cast("Any", None), background)
        control.answer(cast("Delivery", request), answer)
        await eventually(lambda: request.settled)
    return request


async def test_answer_that_the_broker_never_takes_is_a_refusal_that_says_so() -> None:
    broker = Narrow()

    request = await answered(broker, {"attempts": ["x" * 2_000]})

    (message,) = broker.published
    failure = read_result(message).failure
    assert failure is not None
    assert (failure.type, failure.fix) == ("TooLarge", "ask for less: one node, or a page")
    assert request.settled == ["ack"]


async def test_answer_that_cannot_be_sent_now_is_asked_for_again() -> None:
    assert (await answered(Narrow(full=True), {"attempts": []})).settled == ["requeue"]
