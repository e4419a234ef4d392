"""The bridge of one process on RabbitMQ and Redis; each HTTP agent has a broker connection of its own, as any agent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from secrets import token_hex

from coditect.agent.declaration import Agent
from coditect.agent.program import AGENT_CONNECT_SECONDS, publish_window, running_agent
from coditect.agent.services import Host
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor, run_until
from coditect.broker.rabbitmq import AmqpBroker
from coditect.integrations.http.addresses import AllowedHosts
from coditect.integrations.http.bridge import HttpAgents, HttpBridge
from coditect.integrations.http.calls import agent_calls
from coditect.integrations.http.messages import Callbacks
from coditect.model.ids import AgentId
from coditect.model.registration import Registration
from coditect.registry.document import HTTP_PREFIX
from coditect.registry.port import Registry
from coditect.registry.redis import RedisRegistry
from coditect.settings.settings import HttpAgentSettings, Settings
from coditect.telemetry.metrics import TASK_REQUESTS, Metric, Metrics
from coditect.telemetry.process import open_tracing
from coditect.wire.tasks import MAX_BODY_BYTES

log = logging.getLogger(__name__)

ENVELOPE_BYTES = 16 * 1024
"""How much larger than its result an answer may be."""


class AttemptCounts:
    """A process's metrics as its HTTP agents see them: shared counters and histograms, but no gauges.

    A gauge, such as that of free slots, would show the last agent alone, also after its end.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.counter = metrics.counter
        self.histogram = metrics.histogram
        self.totals = metrics.totals

    def observe(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Register the function that reads a count of attempts, which all agents share; ignore any other."""
        if metric is TASK_REQUESTS:
            self._metrics.observe(metric, read, **labels)

    def observe_all(self, metric: Metric, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Ignore a function that returns gauges."""


@asynccontextmanager
async def open_bridge(
    settings: Settings, own: HttpAgentSettings, *, callback_url: str, metrics: Metrics
) -> AsyncIterator[HttpAgents]:
    """Serve HTTP agents inside the block; leaving it drains them. Their callbacks arrive below `callback_url`.

    `metrics` are those of the process, which count the agents' attempts.
    """
    counts = AttemptCounts(metrics)
    hosts = AllowedHosts.read(own.hosts, private=own.private)
    most_bytes = settings.blob_max_bytes if settings.blob_url else MAX_BODY_BYTES
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(RedisRegistry(settings.redis_url))
        registrations = await stack.enter_async_context(RedisRegistry(settings.redis_url, prefix=HTTP_PREFIX))
        most = most_bytes + ENVELOPE_BYTES
        calls = await stack.enter_async_context(agent_calls(hosts, most_bytes=most, metrics=metrics))
        background = await stack.enter_async_context(Supervisor())
        callbacks, name = Callbacks(), AgentId(f"bridge-{token_hex(4)}")
        tracing = await stack.enter_async_context(open_tracing(settings, service="coditect-bridge", instance=name))

        host = Host(workers=None, metrics=counts, tracing=tracing)

        bridge = HttpBridge(
            registrations,
            partial(serve_agent, fleet=fleet, settings=settings, host=host),
            calls,
            callbacks,
            background,
            name=name,
            callback_url=callback_url,
            lease_seconds=own.lease_seconds,
        )
        stack.push_async_callback(bridge.close)
        if hosts.patterns:  # else no agent can be registered
            background.keep(bridge.run, name="HTTP agents", critical=False)
        yield HttpAgents(registrations, fleet, bridge, callbacks, hosts, lease_seconds=own.lease_seconds)


async def serve_agent(
    agent: Agent,
    registration: Registration,
    stop: asyncio.Event,
    *,
    fleet: Registry,
    settings: Settings,
    host: Host,
) -> None:
    """Serve an HTTP agent in this process, with its own broker connection, until `stop` is set; then drain the agent.

    Raises:
        CoditectError: when the broker does not answer, or a loop of the agent died again and again.
    """
    broker = AmqpBroker(
        settings.amqp_url,
        name=registration.agent_id,
        window=publish_window(agent, settings),
        declare=settings.declare,
        quorum=settings.reply_queue == "quorum",
        connect_seconds=AGENT_CONNECT_SECONDS,
    )
    async with (
        broker,
        running_agent(
            agent,
            broker=broker,
            registry=fleet,
            settings=replace(settings, slots=None),
            clock=SystemClock(),
            drain=stop,
            agent_id=registration.agent_id,
            host=replace(host, health=broker.health, metadata=registration.metadata),
        ),
    ):
        log.info("An HTTP agent is served", extra={"agent_id": registration.agent_id})
        await run_until(stop, broker.health.failure())
