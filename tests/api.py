"""The HTTP API over a test fleet: requests reach the application in the test's own loop, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from httpx2 import ASGITransport, AsyncClient
from starlette.types import Message

from coditect.aio.supervisor import Supervisor
from coditect.api.access import Access, OpenAccess
from coditect.api.application import create_app
from coditect.api.connections import SharedConnections
from coditect.api.guard import RequestRates
from coditect.api.live import LiveFeed
from coditect.api.program import AnnouncedServer, listener, server_config
from coditect.api.services import ApiServices, DirectTasks
from coditect.api.webhooks import webhook_sender
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.model.limits import Rate
from coditect.operations.scorecard import SharedScorecard
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import ApiSettings
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
        Supervisor() as background,
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
            scorecard=SharedScorecard(opened, background),
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


@asynccontextmanager
async def caller_that_leaves(api: AsyncClient, path: str, body: dict[str, Any]) -> AsyncIterator[list[Message]]:
    """A POST request whose caller leaves at the end of the block; yields the messages of the response as they come."""
    sent: list[Message] = []
    leaves, asked = asyncio.Event(), iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> Message:
        if (request := next(asked, None)) is not None:
            return request
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
        "server": ("127.0.0.1", 8009),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "http_version": "1.1",
    }
    transport = api._transport
    assert isinstance(transport, ASGITransport)
    answering = asyncio.ensure_future(transport.app(scope, receive, send))
    try:
        yield sent
    finally:
        leaves.set()
        await answering
