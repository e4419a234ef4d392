"""A setting that names several hosts: the first that answers serves, another one after a loss, and lines name which."""

from __future__ import annotations

import logging
import socket

import pytest
from yarl import URL

from chaos.faults.proxy import FaultProxy, fault_proxy
from coditect.broker.rabbitmq import AmqpBroker
from coditect.cli.terminal.failure import describe
from coditect.errors import BrokerUnavailable
from coditect.model.message import Message
from tests.support import eventually

pytestmark = pytest.mark.servers


def place(port: int) -> str:
    return f"amqp://127.0.0.1:{port}/"


async def publish(broker: AmqpBroker, queue: str, name: str, *, seconds: float = 30.0) -> None:
    await broker.publish(Message(b"", message_id=name), exchange="", routing_key=queue, timeout_seconds=seconds)


async def test_dead_first_host_is_passed_over_and_another_one_serves_after_a_loss(
    proxy: FaultProxy, observer: AmqpBroker, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coditect.broker")
    async with fault_proxy(proxy.url) as other:
        with socket.socket() as dead:
            dead.bind(("127.0.0.1", 0))  # bound, not listening
            port = dead.getsockname()[1]
            url = f"{URL(proxy.url).with_port(port)},127.0.0.1:{proxy.port},127.0.0.1:{other.port}"
            async with AmqpBroker(url, name="several") as broker:
                await publish(broker, queue, "over the second host")
                before = len(other.ever)

                for pipe in proxy.pipes(b"several"):
                    pipe.cut()
                await eventually(lambda: broker.connected and len(other.ever) == 2)
                await publish(broker, queue, "over the third host")

    assert before == 0
    stats = await observer.stats(queue)
    assert stats is not None
    assert stats.messages == 2
    told = {(line.getMessage(), str(vars(line)["url"])) for line in caplog.records if "url" in vars(line)}
    assert told == {
        ("The broker cannot be reached, trying on", place(port)),
        ("The broker's connection was lost", place(proxy.port)),
        ("The broker's connection stands again", place(proxy.port)),
        ("The broker's connection stands again", place(other.port)),
    }


async def test_publish_that_reaches_no_broker_names_the_address_and_where_it_came_from(
    proxy: FaultProxy, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODITECT_AMQP_URL", proxy.url)
    async with AmqpBroker(proxy.url, name="alone") as broker:
        proxy.path.cut_off()
        for pipe in proxy.pipes():
            pipe.cut()
        await eventually(lambda: not broker.connected)

        with pytest.raises(BrokerUnavailable) as raised:
            await publish(broker, queue, "nowhere", seconds=0.3)

    told = describe(raised.value)
    assert f"url: {place(proxy.port)}" in told
    assert "address from: CODITECT_AMQP_URL in the environment" in told
