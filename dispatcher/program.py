"""Puts the control plane together: the only place of this package that knows adapters."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from coditect.agent.events import Events
from coditect.agent.health import health_server
from coditect.background import Background
from coditect.broker.amqp import AmqpBroker
from coditect.broker.port import Broker
from coditect.clock import Clock, SystemClock
from coditect.errors import CoditectError
from coditect.loop import run_loop
from coditect.registry.port import Registry
from coditect.registry.redis import RedisRegistry
from coditect.settings import Settings, read_settings
from coditect.telemetry.logs import configure_logs
from dispatcher.notices import Notices

log = logging.getLogger(__name__)

CONNECT_SECONDS = 60.0


@asynccontextmanager
async def running_dispatcher(*, broker: Broker, registry: Registry, clock: Clock) -> AsyncIterator[Notices]:
    """The control plane at work on these ports; leaving the context finishes what is in hand."""
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(Background())
        events = Events(broker, background, clock, source="/dispatcher")
        yield await stack.enter_async_context(Notices(broker, registry, events, background))


async def serve(settings: Settings) -> None:
    """Runs one dispatcher until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    broker = AmqpBroker(
        settings.amqp_url,
        name="dispatcher",
        window=settings.window,
        declare=settings.declare,
        wire=settings.wire,
        connect_seconds=CONNECT_SECONDS,
    )
    async with broker, RedisRegistry(settings.redis_url) as registry, AsyncExitStack() as stack:
        await stack.enter_async_context(running_dispatcher(broker=broker, registry=registry, clock=SystemClock()))
        if settings.health_port is not None:
            await stack.enter_async_context(
                health_server(lambda: unready(broker), host=settings.health_host, port=settings.health_port)
            )
        _tell_ready()
        log.info("The dispatcher is ready")
        await stop.wait()


def unready(broker: Broker) -> str:
    """Why the dispatcher cannot work; empty when it can."""
    return "" if broker.connected else "the broker's connection or a consumer is missing"


def _tell_ready() -> None:
    """Creates the file that `CODITECT_READY_FILE` names, for whoever started us."""
    name = os.environ.get("CODITECT_READY_FILE")
    if name:
        Path(name).touch()


def main() -> int:
    """Runs the dispatcher with the settings of the environment; gives the exit code."""
    configure_logs("INFO")
    try:
        settings = read_settings()
        configure_logs(settings.log_level)
        run_loop(serve(settings))
    except CoditectError as error:
        log.error("The dispatcher cannot run", extra={"reason": str(error)})
        return error.exit_code
    return 0
