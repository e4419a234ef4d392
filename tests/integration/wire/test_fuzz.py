"""Strange messages through a real broker: every one is settled and answered, and the consumer goes on."""

from __future__ import annotations

from uuid import uuid4

import pika.exceptions
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coditect.model.capability import Priority
from coditect.wire import routing
from tests.fleet import Running
from tests.integration.wire import foreign, hostile
from tests.integration.wire.agent import Echo
from tests.integration.wire.foreign import blocking
from tests.integration.wire.strategies import Strange, strange_messages
from tests.support import eventually

pytestmark = pytest.mark.servers

BINARY_PROPERTIES = ("message_id", "type", "content_type", "app_id", "content_encoding")


@st.composite
def wild_properties(draw: st.DrawFn) -> dict[str, bytes]:
    """Properties that are any bytes."""
    names = draw(st.lists(st.sampled_from(BINARY_PROPERTIES), max_size=2, unique=True))
    return {name: draw(st.binary(min_size=1, max_size=255)) for name in names}


def _ask(url: str, key: str, messages: list[tuple[Strange, dict[str, bytes]]]) -> tuple[set[str], list[str | None]]:
    """Publishes them all; which ones the broker took, and whose answers came."""
    taken: set[str] = set()
    with foreign.channel(url) as opened:
        queue = foreign.own_queue(opened)
        for strange, wild in messages:
            correlation_id = uuid4().hex
            given_properties = {"message_id": strange.message_id, "type": strange.type, **wild}
            properties = foreign.properties(
                headers=strange.headers, reply_to=queue, correlation_id=correlation_id, **given_properties
            )
            try:
                opened.basic_publish(routing.TASKS, key, strange.body, properties, mandatory=True)
            except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ShortStringTooLong):
                return taken, []  # not AMQP: the broker or pika refused it, and the channel is gone
            taken.add(correlation_id)
        answers = foreign.answers(opened, queue, many=len(taken), seconds=10)
        return taken, [one.correlation_id for one in answers]


@pytest.mark.proof
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(messages=st.lists(st.tuples(strange_messages(), wild_properties()), min_size=1, max_size=10))
async def test_strange_messages_are_each_answered_and_hold_up_nobody(
    fleet: Running, echo: Echo, amqp_url: str, messages: list[tuple[Strange, dict[str, bytes]]]
) -> None:
    taken, answered = await blocking(_ask, amqp_url, echo.capability, messages)

    good = await blocking(foreign.ask, amqp_url, echo.capability, hostile.GOOD)
    assert good.status == "completed"
    assert not answered or set(answered) == taken
    assert fleet.broker.connected
    for level in Priority:
        queue = routing.task_queue(echo.capability, level)
        await eventually(lambda queue=queue: fleet.drained(queue))  # type: ignore[misc]
