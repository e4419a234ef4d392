"""`coditect agent log-level`: an order that agents and dispatchers carry out."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from coditect import Agent
from coditect.broker.topology import base_topology
from coditect.broker.topology_diff import PlannedBroker
from coditect.wire import control_messages, routing
from coditect.wire.control_messages import LOG_LEVEL, LogLevelOrder
from coditect.wire.json import loads
from tests.support import eventually
from tests.unit.agent.scene import open_scene
from tests.unit.cli.scene import AGENT, Terminal


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("coditect.messaging.rpc")
    before = found.level
    yield found
    found.setLevel(before)


def test_the_order_comes_to_the_mailbox_of_the_agent(terminal: Terminal) -> None:
    async def sent(broker: PlannedBroker) -> tuple[str | None, object]:
        delivery = await broker.get(f"agent.{AGENT}.mail")
        assert delivery is not None
        delivery.ack()
        return delivery.message.type, LogLevelOrder.read(loads(delivery.message.body))

    terminal.open_mailbox()
    ran = terminal.run("agent", "log-level", "agent.runtime", "debug", "--for", "10m")
    assert terminal.broker(sent) == (LOG_LEVEL, LogLevelOrder("agent.runtime", "debug", 600.0))
    terminal.run("agent", "log-level", "all", "default", "--agent", AGENT)

    assert terminal.broker(sent) == (LOG_LEVEL, LogLevelOrder("", None))
    assert (ran.code, ran.out) == (0, "")
    assert "agent.runtime logs at debug for 10m" in ran.err


@pytest.mark.parametrize(
    ("logger", "remarked"),
    [("nosuch.logger", True), ("a..b", True), ("agent.runtime", False), ("coditect.agent", False), ("all", False)],
)
def test_a_logger_that_no_module_has_is_told_so(terminal: Terminal, logger: str, remarked: bool) -> None:
    terminal.open_mailbox()
    ran = terminal.run("agent", "log-level", logger, "debug")

    assert ran.code == 0
    assert ("No module here is named" in ran.err) is remarked


def test_an_agent_that_is_unknown_and_a_fleet_that_is_empty_exit_4(terminal: Terminal) -> None:
    nothing = terminal.run("agent", "log-level", "all", "debug")
    terminal.declare(base_topology())
    unknown = terminal.run("agent", "log-level", "all", "debug", "--agent", "nobody-1")

    assert (nothing.code, unknown.code) == (4, 4)
    assert "No agent has this id" in unknown.err


async def test_an_agent_carries_it_out(logger: logging.Logger) -> None:
    async with open_scene() as scene:
        await scene.start(Agent("other"))
        message = control_messages.log_level(LogLevelOrder("messaging.rpc", "debug"))
        await (await scene.broker()).publish(message, exchange=routing.BROADCAST, routing_key="")

        await eventually(lambda: logger.level == logging.DEBUG)
