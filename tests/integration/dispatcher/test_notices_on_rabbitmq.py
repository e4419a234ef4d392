"""The dispatcher on a real broker: whoever published a task that no agent ran hears why."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from coditect.aio.clock import SystemClock
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Queue, Topology, base_topology, capability_queues
from coditect.registry.redis import RedisRegistry
from coditect.wire import routing
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.undeliverable.notices import Notices
from tests.fleet import remove_queues, running, taken
from tests.integration.wire import foreign, hostile
from tests.integration.wire.agent import Echo
from tests.integration.wire.foreign import Answer, blocking
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(amqp_url, name="looker") as opened:
        yield opened


ONE = DispatcherOptions(shards=1)


@asynccontextmanager
async def dispatching(servers: Servers, registry: RedisRegistry | None = None) -> AsyncIterator[Notices]:
    """A dispatcher in this process; with the registry of a fleet it knows that fleet's capabilities."""
    async with (
        AmqpBroker(servers.amqp_url, name="dispatcher") as own,
        RedisRegistry(servers.redis_url, prefix=f"test-{uuid4().hex}:") as empty,
        running_dispatcher(broker=own, registry=registry or empty, clock=SystemClock(), options=ONE) as dispatcher,
    ):
        yield dispatcher.notices


@asynccontextmanager
async def abandoned(broker: AmqpBroker, capability: str) -> AsyncIterator[None]:
    """Queues of a capability that nobody consumes."""
    await broker.declare(base_topology() + capability_queues(capability))
    yield
    await remove_queues(broker, [capability])


def _reason(answer: Answer) -> object:
    return json.loads(answer.body)["reason"]


async def test_unknown_capability_is_answered_with_the_nearest_name(servers: Servers, capability: str) -> None:
    async with running(Echo(capability).agent(), servers) as fleet, dispatching(servers, fleet.registry):
        answer = await blocking(foreign.ask, servers.amqp_url, f"{capability}s.p0", b"{}", correlation_id="c")

    assert (answer.status, answer.correlation_id, _reason(answer)) == ("rejected", "c", "unknown_capability")
    assert capability in json.loads(answer.body)["message"]


async def test_unknown_capability_is_answered_through_direct_reply_to(servers: Servers, capability: str) -> None:
    async with dispatching(servers):
        answer = await blocking(foreign.ask_directly, servers.amqp_url, capability, b"{}")

    assert _reason(answer) == "unknown_capability"


async def test_task_that_expired_in_its_queue_is_answered(
    servers: Servers, broker: AmqpBroker, capability: str
) -> None:
    async with dispatching(servers), abandoned(broker, capability):
        answer = await blocking(foreign.ask, servers.amqp_url, capability, b"{}", expiration="20")

        assert (answer.status, _reason(answer)) == ("rejected", "expired")
        assert len(await taken(broker, routing.dead_queue(capability))) == 1


async def test_task_that_came_back_too_often_is_answered(servers: Servers, broker: AmqpBroker, capability: str) -> None:
    key = f"{capability}.p1"
    queue = Queue(f"tasks.{key}", delivery_limit=1, dead_letter_exchange=routing.DEAD)
    async with dispatching(servers):
        await broker.declare(Topology(queues=(queue,)))
        await broker.consume(queue.name, lambda delivery: delivery.requeue(), prefetch=1)

        answer = await blocking(_ask_queue, servers.amqp_url, queue.name)

        await broker.delete_queue(queue.name)
        assert (answer.status, _reason(answer)) == ("failed", "delivery_limit")


def _ask_queue(url: str, queue: str) -> Answer:
    with foreign.channel(url) as opened:
        replies = foreign.own_queue(opened)
        opened.basic_publish("", queue, b"{}", foreign.properties(reply_to=replies), mandatory=True)
        (answer,) = foreign.answers(opened, replies, many=1, seconds=10)
        return answer


async def test_task_that_an_agent_gave_up_is_answered_once(servers: Servers, capability: str) -> None:
    async with running(Echo(capability).agent(), servers) as fleet, dispatching(servers) as notices:
        requests: list[tuple[bytes, dict[str, str]]] = [(b"[]", {"correlation_id": str(n)}) for n in range(20)]

        answers = await blocking(foreign.ask_many, servers.amqp_url, capability, requests)

        await eventually(lambda: notices.ignored.value >= 20)
        assert {one.correlation_id for one in answers} == {str(n) for n in range(20)}
        assert notices.answered.value == 0
        assert len(await fleet.letters(routing.dead_queue(capability))) == 20


async def test_hostile_messages_without_a_queue_are_answered_and_hold_up_nobody(
    servers: Servers, capability: str
) -> None:
    failures: dict[str, Answer] = {}
    async with dispatching(servers) as notices:
        for bad in hostile.ALL:
            if bad.answered:
                answer = await blocking(foreign.ask, servers.amqp_url, capability, bad.body, **bad.properties)
                failures |= {bad.name: answer} if _reason(answer) != "unknown_capability" else {}
            else:
                await blocking(foreign.publish, servers.amqp_url, capability, bad.body, **bad.properties)

        assert failures == {}
        assert notices.failed.value == 0


async def test_header_tables_that_would_choke_their_reader_hold_up_nobody(servers: Servers, capability: str) -> None:
    def publish() -> None:
        with foreign.channel(servers.amqp_url) as opened:
            for encoded in (hostile.nested(5_000), hostile.void_array(120_000)):
                hostile.publish_raw_headers(opened, "coditect.tasks", capability, encoded)

    async with dispatching(servers) as notices:
        await blocking(publish)

        answer = await blocking(foreign.ask, servers.amqp_url, capability, b"{}")

        assert _reason(answer) == "unknown_capability"
        assert notices.failed.value == 0


async def test_bad_task_that_was_pinned_is_kept_with_the_capabilitys_dead_letters(
    servers: Servers, capability: str
) -> None:
    async with running(Echo(capability).agent(), servers) as fleet, dispatching(servers):
        pinned = {"CC": [f"{capability}.p1"], "x-coditect-capability": capability, "x-coditect-deadline": "never"}

        await blocking(
            foreign.publish,
            *(servers.amqp_url, fleet.runtime.agent_id, b"{}"),
            exchange="coditect.agents",
            headers=pinned,
        )

        await eventually(lambda: fleet.holds(routing.dead_queue(capability), 1))


async def test_undecodable_task_that_was_pinned_is_kept_with_the_capabilitys_dead_letters(
    servers: Servers, capability: str
) -> None:
    async with running(Echo(capability).agent(), servers) as fleet, dispatching(servers):
        headers = {"CC": [f"{capability}.p1"], "x-coditect-capability": capability, b"\xff": 1}

        await blocking(
            foreign.publish,
            *(servers.amqp_url, fleet.runtime.agent_id, b"{}"),
            exchange="coditect.agents",
            headers=headers,
        )

        await eventually(lambda: fleet.holds(routing.dead_queue(capability), 1))


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_program_says_when_it_is_ready_answers_and_ends_on_a_signal(
    servers: Servers, capability: str, tmp_path: Path, signal_number: signal.Signals
) -> None:
    ready = tmp_path / "ready"
    environment = {
        **os.environ,
        "CODITECT_AMQP_URL": servers.amqp_url,
        "CODITECT_REDIS_URL": servers.redis_url,
        "CODITECT_READY_FILE": str(ready),
        "CODITECT_STORE_URL": f"sqlite:{tmp_path / 'ledger.db'}",
        "CODITECT_SHARDS": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "dispatcher"], env=environment, stderr=subprocess.PIPE)
    try:
        await eventually(ready.exists)

        answer = await blocking(foreign.ask, servers.amqp_url, capability, b"{}")

        process.send_signal(signal_number)
        _, log = await asyncio.to_thread(process.communicate, timeout=100)
        events = [json.loads(line)["event"] for line in log.decode().splitlines()]
        assert _reason(answer) == "unknown_capability"
        assert process.returncode == 0
        assert "The dispatcher is ready" in events
        assert "A task ended that no agent ran" in events
    finally:
        process.kill()
        process.wait()


async def test_program_with_a_wrong_setting_ends_and_says_which(tmp_path: Path) -> None:
    environment = {**os.environ, "CODITECT_WINDOW": "none"}

    process = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "dispatcher"],
        env=environment,
        capture_output=True,
        timeout=100,
        check=False,
    )

    (line,) = process.stderr.decode().splitlines()
    assert process.returncode == 1
    assert "CODITECT_WINDOW" in json.loads(line)["reason"]


async def test_dispatcher_that_may_declare_nothing_shared_still_has_its_own_queues(
    servers: Servers, broker: AmqpBroker, capability: str
) -> None:
    await broker.declare(base_topology())
    shard = routing.control_queue(0), routing.results_queue(0)
    for queue in (routing.UNROUTED_NOTICES, routing.DEAD_NOTICES, routing.CONTROL_QUEUE, *shard):
        await broker.delete_queue(queue)

    async with (
        AmqpBroker(servers.amqp_url, name="dispatcher", declare=False) as own,
        RedisRegistry(servers.redis_url, prefix=f"test-{uuid4().hex}:") as registry,
        running_dispatcher(broker=own, registry=registry, clock=SystemClock(), options=ONE),
    ):
        answer = await blocking(foreign.ask, servers.amqp_url, capability, b"{}")

    assert _reason(answer) == "unknown_capability"


async def test_answers_go_on_after_the_brokers_connection_was_lost(servers: Servers, capability: str) -> None:
    async with (
        AmqpBroker(servers.amqp_url, name="dispatcher") as own,
        RedisRegistry(servers.redis_url, prefix=f"test-{uuid4().hex}:") as registry,
        running_dispatcher(broker=own, registry=registry, clock=SystemClock(), options=ONE),
    ):
        own.drop()

        answer = await blocking(foreign.ask, servers.amqp_url, capability, b"{}")

    assert _reason(answer) == "unknown_capability"
