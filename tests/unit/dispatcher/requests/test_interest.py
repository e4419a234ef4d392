from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial

import pytest

from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology
from coditect.messaging.event_publisher import Events
from coditect.messaging.event_stream import EventStreams
from coditect.model.message import Message
from coditect.wire import control_messages, routing
from coditect.wire.control_messages import LogLevelOrder
from dispatcher.requests.interest import hearing_listeners
from tests.support import eventually


async def test_what_was_muted_is_told_to_whoever_begins_to_listen() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker, MemoryBroker(server) as other:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/dispatcher")
        async with hearing_listeners(broker, events, owner="d"):
            events.emit("node.started", subject="nobody hears it")
            await eventually(lambda: not events.heard("node.started"))

            async with EventStreams(other, name="client").stream("node.*") as stream:
                await eventually(lambda: events.heard("node.started"))
                events.emit("node.started", subject="w")
                event = await asyncio.wait_for(anext(stream), 60)

    assert event.subject == "w"


@pytest.mark.parametrize(
    "message",
    [control_messages.cancel("t"), replace(control_messages.listen(), type="coditect.listen.v2")],
    ids=["to agents", "of a newer version"],
)
async def test_other_control_messages_are_let_go(message: Message) -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/dispatcher")
        async with hearing_listeners(broker, events, owner="d"):
            events.emit("node.started")
            await eventually(lambda: not events.heard("node.started"))
            await broker.publish(message, exchange=routing.BROADCAST, routing_key="")
            await eventually(lambda: server.queue("events.d").stats.messages + server.queue("events.d").in_hand == 0)

            assert not events.heard("node.started")


async def test_a_log_level_is_set() -> None:
    logger = logging.getLogger("coditect.messaging.rpc")
    async with MemoryBroker(MemoryServer()) as broker:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/dispatcher")
        async with hearing_listeners(broker, events, owner="d"):
            for level, number in (("error", logging.ERROR), (None, logging.NOTSET)):
                order = control_messages.log_level(LogLevelOrder("messaging.rpc", level))
                await broker.publish(order, exchange=routing.BROADCAST, routing_key="")
                await eventually(partial(_is_at, logger, number))


def _is_at(logger: logging.Logger, level: int) -> bool:
    return logger.level == level
