"""What a process is told when it cannot reach its broker at start."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import uvloop
from yarl import URL

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Queue, QueueType, Topology, base_topology, webhook_queue
from coditect.cli.compose import RealConnections, sign_in
from coditect.cli.doctor import check_control_plane
from coditect.errors import BrokerUnavailable, SetupError, TopologyMismatch
from coditect.local.doctor import check_server
from coditect.local.probe import broker_version
from coditect.local.servers import free_ports
from coditect.model.message import Message
from coditect.settings.settings import Settings
from coditect.wire import routing
from tests.faults.node import Node, private_node
from tests.integration.broker.conftest import Scene
from tests.servers import Broker
from tests.support import eventually, patient

pytestmark = pytest.mark.servers


async def test_wrong_password_is_a_set_up_error_at_once(amqp_url: str) -> None:
    url = str(URL(amqp_url).with_password("wrong"))

    with pytest.raises(SetupError) as caught:
        async with asyncio.timeout(60), AmqpBroker(url):
            pass

    assert "CODITECT_AMQP_URL" in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("listens", [False, True])
async def test_port_without_a_broker_is_unavailable_within_the_connect_time(amqp_url: str, listens: bool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()  # and never answers
        url = str(URL(amqp_url).with_port(taken.getsockname()[1]))
        started = asyncio.get_running_loop().time()

        with pytest.raises(BrokerUnavailable) as caught:
            async with AmqpBroker(url, connect_seconds=1.0):
                pass

        assert asyncio.get_running_loop().time() - started < 10.0
    assert caught.value.facts["fix"] == "start it with `coditect up`, or point CODITECT_AMQP_URL to it"
    assert caught.value.retryable


async def test_unknown_vhost_is_unavailable_and_named(amqp_url: str) -> None:
    with pytest.raises(BrokerUnavailable, match="virtual host") as caught:
        async with AmqpBroker(str(URL(amqp_url).with_path("/nowhere")), connect_seconds=patient(2.0)):
            pass

    assert "nowhere" in str(caught.value)


@pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"path": "/nowhere"}, {}])
async def test_doctor_finds_a_broker_only_where_it_lets_us_in(amqp_url: str, wrong: dict[str, str]) -> None:
    url = URL(amqp_url)
    url = url.with_password(wrong["password"]) if "password" in wrong else url
    url = url.with_path(wrong["path"]) if "path" in wrong else url

    found = await check_server("broker", str(url), broker_version, (3, 10), sign_in=sign_in)

    assert found.ok is (not wrong)
    assert bool(found.fix) is bool(wrong)


LIMITED = """\
{User, Host, All, None, Who} = {<<"%s">>, <<"/">>, <<".*">>, <<"^$">>, <<"tests">>},
ok = rabbit_auth_backend_internal:add_user(User, <<"secret">>, Who),
ok = rabbit_auth_backend_internal:set_permissions(User, Host, %s, Who).
"""


@pytest.mark.parametrize(
    "granted",
    ["None, None, None", "None, All, All", "All, None, All", "All, All, None"],
    ids=["none", "no configure", "no write", "no read"],
)
async def test_doctor_names_the_permissions_that_the_brokers_user_lacks(breakable: Broker, granted: str) -> None:
    user = f"user-{uuid4().hex[:8]}"
    await breakable.evaluate(LIMITED % (user, granted))
    url = str(URL(breakable.servers.amqp_url).with_user(user).with_password("secret"))

    async with asyncio.timeout(patient(30)):
        found = await check_control_plane(RealConnections(replace(Settings(), amqp_url=url)))

    assert (found.ok, "permissions do not allow" in found.detail) == (False, True), found
    assert "rabbitmqctl set_permissions" in found.fix


UNLOGGED = """
import asyncio, sys
from coditect.broker.rabbitmq import AmqpBroker
from coditect.errors import CoditectError
from chaos.faults.proxy import fault_proxy
from tests.support import eventually

async def main():
    async with fault_proxy(sys.argv[1]) as between, AmqpBroker(between.url) as broker:
        for _ in range(3):
            lost = between.pipes()
            for pipe in lost:
                pipe.cut()
            await eventually(lambda: broker.connected and not set(lost) & set(between.pipes()))
    try:
        async with AmqpBroker(sys.argv[2], connect_seconds=1.0):
            pass
    except CoditectError:
        print("refused")

asyncio.run(main())
"""


async def test_lost_connections_print_no_traceback_where_no_logging_is_set_up(amqp_url: str) -> None:
    wrong = str(URL(amqp_url).with_password("wrong"))
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UNLOGGED, amqp_url, wrong, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await program.communicate()

    assert out == b"refused\n", err
    assert b"Traceback" not in err
    assert b"aiormq" not in err


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address and the certificate of a broker that also speaks TLS."""
    folder = tmp_path_factory.mktemp("secured")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    request = f"req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate}".split()
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *request, *named], check=True, capture_output=True)
    (port,) = free_ports(1)
    with private_node(folder / "node") as node:
        asyncio.run(_listen_with_tls(node, port, certificate, key))
        yield str(URL(node.url).with_scheme("amqps").with_port(port)), certificate


async def _listen_with_tls(node: Node, port: int, certificate: Path, key: Path) -> None:
    configuration = node.folder / "rabbitmq.conf"
    lines = [f"listeners.ssl.local = 127.0.0.1:{port}", f"ssl_options.certfile = {certificate}"]
    lines += [
        f"ssl_options.cacertfile = {certificate}",
        f"ssl_options.keyfile = {key}",
        "ssl_options.verify = verify_none",
    ]
    configuration.write_text("\n".join([configuration.read_text(), *lines, ""]))
    await node.kill()
    await node.start()


async def test_tls_with_a_self_signed_certificate_works_with_its_file_in_the_address(secured: tuple[str, Path]) -> None:
    url, certificate = secured

    async with AmqpBroker(f"{url}/?cafile={certificate}") as broker:
        scene = Scene(url, broker)
        queue = await scene.declare()
        await broker.publish(Message(b"x" * 300_000), exchange="", routing_key=queue)
        delivery = await broker.get(queue)

        assert delivery is not None and len(delivery.message.body) == 300_000
        assert broker.connected


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_tls_carries_thousands_of_messages_and_bodies_of_100_kb(
    secured: tuple[str, Path], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    url, certificate = secured

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_carry(f"{url}/?cafile={certificate}"))


async def _carry(url: str) -> None:
    bodies = {f"m-{number}": b"x" * (100_000 if number % 10 == 0 else number % 300) for number in range(2_000)}
    taken: dict[str | None, bytes] = {}

    def take(delivery: Delivery) -> None:
        taken[delivery.message.message_id] = delivery.message.body
        delivery.ack()

    async with AmqpBroker(url) as broker:
        scene = Scene(url, broker)
        queue = await scene.declare()
        await broker.consume(queue, take, prefetch=100)
        await asyncio.gather(
            *(
                broker.publish(Message(body, message_id=name), exchange="", routing_key=queue)
                for name, body in bodies.items()
            )
        )
        await eventually(lambda: len(taken) == len(bodies))
        await broker.delete_queue(queue)

    assert taken == bodies


async def test_tls_with_a_certificate_nobody_vouches_for_says_so_at_once(secured: tuple[str, Path]) -> None:
    url, _ = secured

    with pytest.raises(SetupError, match="certificate is not trusted") as caught:
        async with asyncio.timeout(60), AmqpBroker(url):
            pass

    assert "cafile" in str(caught.value)


async def test_queue_that_was_declared_before_the_cluster_s_setting_stays_classic_and_is_consumed(scene: Scene) -> None:
    wanted = base_topology() + webhook_queue(f"{scene.prefix}.hook", ("hook.called",))
    [*_, queue] = wanted.queues
    scene.names.append(queue.name)
    await scene.observer.declare(wanted)
    seen: list[bytes] = []

    def take(delivery: Delivery) -> None:
        seen.append(delivery.message.body)
        delivery.ack()

    async with AmqpBroker(scene.url, name="upgraded", quorum=True) as broker:
        await broker.declare(wanted)
        await broker.consume(queue.name, take, prefetch=1)
        await broker.publish(Message(b"0"), exchange=routing.EVENTS, routing_key="hook.called")
        await eventually(lambda: seen == [b"0"])
        broker.drop()
        await eventually(lambda: not broker.connected)
        await eventually(lambda: broker.connected)
        await broker.publish(Message(b"1"), exchange=routing.EVENTS, routing_key="hook.called")
        await eventually(lambda: b"1" in seen)  # behind the first again, if its acknowledgement was lost


async def test_queue_with_other_limits_is_refused_by_a_broker_of_a_cluster_too(scene: Scene) -> None:
    name = await scene.declare(max_length=5)

    async with AmqpBroker(scene.url, name="upgraded", quorum=True) as broker:
        for type_ in QueueType:
            with pytest.raises(TopologyMismatch):
                await broker.declare(Topology(queues=(Queue(name, type_, max_length=6),)))


async def test_refused_declarations_cost_no_connection(scene: Scene, broker: AmqpBroker) -> None:
    name = await scene.declare(max_length=5)
    losses: list[bool] = []
    await broker.consume(name, Delivery.ack, prefetch=1, on_lost=lambda: losses.append(True))

    for _ in range(30):
        with pytest.raises(TopologyMismatch):
            await broker.declare(Topology(queues=(Queue(name, max_length=6),)))

    assert not losses
