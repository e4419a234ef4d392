"""Every way in which aiormq fails is known to the adapter; a new one fails a test."""

from __future__ import annotations

import asyncio
import inspect

import aiormq.exceptions
import pytest
from aiormq.exceptions import DeliveryError, PublishError

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq.channels import LOST, refusal, unreachable
from coditect.broker.topology import Binding, Topology
from coditect.errors import BrokerUnavailable, CoditectError, NotFound, SetupError, TopologyMismatch
from coditect.model.message import Message
from tests.integration.broker.conftest import Scene

SAID = "it's about 'thing' in vhost '/'"
ABOUT_AN_ENTITY = {
    "ChannelNotFoundEntity": NotFound,
    "ChannelPreconditionFailed": TopologyMismatch,
    "ChannelAccessRefused": SetupError,
}
ABOUT_THE_SET_UP = {"AuthenticationError", "ProbableAuthenticationError"}
ANSWERS = {DeliveryError, PublishError}
"""Not a loss: the broker's answer to one publish, which the publisher takes first."""


def vendor_errors() -> dict[str, type[BaseException]]:
    members = inspect.getmembers(aiormq.exceptions, inspect.isclass)
    return {name: member for name, member in members if issubclass(member, BaseException)}


@pytest.mark.parametrize("error", vendor_errors().values(), ids=vendor_errors())
def test_every_exception_of_the_vendor_is_a_loss(error: type[BaseException]) -> None:
    assert issubclass(error, LOST)


@pytest.mark.parametrize("name", sorted(vendor_errors()))
def test_every_exception_of_the_vendor_becomes_a_typed_error_where_it_says_more_than_a_loss(name: str) -> None:
    kind = vendor_errors()[name]
    if kind in ANSWERS:
        return
    error = kind(SAID)

    refused = refusal(error, entity="thing")
    told = unreachable("amqp://me:secret@broker:5672/?cafile=x", error)

    assert type(refused) is ABOUT_AN_ENTITY.get(name, type(None))
    assert type(told) is (SetupError if name in ABOUT_THE_SET_UP else BrokerUnavailable)
    assert "secret" not in str(told)


def test_unknown_address_of_an_unreachable_broker_is_no_error_of_its_own() -> None:
    assert isinstance(unreachable("", TimeoutError()), BrokerUnavailable)


def test_pending_calls_end_with_the_errors_that_are_taken_for_a_loss() -> None:
    assert all(issubclass(one, LOST) for one in (ConnectionResetError, TimeoutError, EOFError, RuntimeError))
    assert not issubclass(asyncio.CancelledError, LOST)


@pytest.mark.servers
async def test_connection_that_ended_without_an_error_is_a_loss_for_what_is_pending(
    scene: Scene, broker: AmqpBroker
) -> None:
    queue = await scene.declare()
    connection = await broker._outgoing.connection()
    publishes = [
        asyncio.ensure_future(broker.publish(Message(b"x", message_id=str(one)), exchange="", routing_key=queue))
        for one in range(50)
    ]
    await asyncio.wait(publishes, timeout=0.001)

    await connection.close(None)  # what aiormq does itself when the peer closes between two frames
    ended = await asyncio.gather(*publishes, return_exceptions=True)

    assert [one for one in ended if one is not None] == []
    assert await scene.ready(queue) >= 50


@pytest.mark.servers
async def test_binding_to_a_missing_exchange_is_told_at_once(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare()
    missing = Topology(bindings=(Binding(f"{scene.prefix}.missing", queue, "key"),))

    with pytest.raises(CoditectError) as caught:
        await asyncio.wait_for(broker.declare(missing), 5)

    assert isinstance(caught.value, NotFound)
