"""The HTTP API over a test fleet: requests reach the application in the test's own loop, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from httpx2 import ASGITransport, AsyncClient

from coditect.api.access.roles import Access, OpenAccess
from coditect.api.application import create_app
from coditect.api.connections import SharedConnections
from coditect.api.direct_tasks import DirectTasks
from coditect.api.limits import RequestRates
from coditect.api.live.feed import LiveFeed
from coditect.api.program import AnnouncedServer, listener, server_config
from coditect.api.services import ApiServices
from coditect.api.webhooks.sending import webhook_sender
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.model.limits.rate import Rate
from coditect.registry.memory import MemoryRegistry
from coditect.settings.api import ApiSettings
from coditect.testing import TestFleet
from tests.unit.cli.scene import ProbedBroker

WEBHOOK_KEY = "k" * 32
ADDRESS = "http://127.0.0.1:8009"


@asynccontextmanager
async def services_of(
    server: MemoryServer,
    registry: MemoryRegistry,
    client: Client,
    *,
    access: Access | None = None,
    rate: Rate | None = None,
) -> AsyncIterator[ApiServices]:
    """What the routes are given, over in-memory servers."""
    async with (
        MemoryBroker(server, name="api") as broker,
        LiveFeed(broker, name="api-test") as feed,
        webhook_sender(WEBHOOK_KEY, private=True) as sender,
    ):
        opened = SharedConnections(
            broker=lambda: ProbedBroker(server, {}),
            registry=registry,
            http_agents=MemoryRegistry(),
            client=client,
            environ={},
        )
        rates = RequestRates(rate, asyncio.get_running_loop().time)
        yield ApiServices(
            opened=opened,
            broker=broker,
            access=access or OpenAccess(),
            rates=rates,
            direct_tasks=DirectTasks(),
            feed=feed,
            webhooks=sender,
        )


@asynccontextmanager
async def serving(
    services: ApiServices, settings: ApiSettings | None = None
) -> AsyncIterator[tuple[str, AnnouncedServer]]:
    """The API on a real socket, for streams: its address, and the server."""
    ready = asyncio.Event()
    config = server_config(services, settings or ApiSettings())
    with listener("127.0.0.1", 0) as own:
        server = AnnouncedServer(config, ready.set, ending=services.feed.end)
        running = asyncio.create_task(server._serve([own]))
        await ready.wait()
        try:
            yield f"http://127.0.0.1:{own.getsockname()[1]}", server
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def api_of(
    fleet: TestFleet,
    *,
    access: Access | None = None,
    rate: Rate | None = None,
    settings: ApiSettings | None = None,
) -> AsyncIterator[AsyncClient]:
    """A client of the API of a fleet."""
    async with services_of(fleet.server, fleet.registry, fleet.client, access=access, rate=rate) as services:
        app = create_app(services, settings or ApiSettings())
        transport = ASGITransport(app=app, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url=ADDRESS) as http:
            yield http
