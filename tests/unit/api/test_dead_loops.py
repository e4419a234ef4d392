"""An API whose loop dies is not ready within a second, and heals; for ever, the process ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import create_autospec

import pytest
from httpx2 import ASGITransport, AsyncClient

from coditect.aio.supervisor import LoopDied, RestartLimits
from coditect.api import program
from coditect.api.application import create_app
from coditect.api.program import AnnouncedServer, ApiProgram, open_services, serve_until
from coditect.broker.memory import MemoryServer
from coditect.integrations.http.bridge import HttpAgents
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import ApiSettings, Settings
from coditect.telemetry.metrics import MemoryMetrics
from coditect.testing import TestFleet
from tests.api import ADDRESS
from tests.loops import WATCH, LoopingBroker, strike_once


def http_agents() -> HttpAgents:
    made: HttpAgents = create_autospec(HttpAgents, instance=True, registrations=MemoryRegistry())
    return made


async def test_api_is_not_ready_while_a_loop_that_died_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestFleet() as fleet:
        broker = LoopingBroker(fleet.server, "api")
        monkeypatch.setattr(program, "adapters", lambda *_, **__: (broker, MemoryRegistry()))
        async with (
            open_services(Settings(), ApiSettings(), http_agents(), MemoryMetrics()) as services,
            AsyncClient(transport=ASGITransport(create_app(services, ApiSettings())), base_url=ADDRESS) as http,
        ):
            before = await http.get("/readyz")
            await strike_once(broker.health, WATCH)
            await asyncio.sleep(0.01)
            down = await http.get("/readyz")
            await fleet.advance(2)
            healed = await http.get("/readyz")
        fleet.forgive_crashes()

    assert (before.status_code, down.status_code, healed.status_code) == (200, 503, 200)
    assert WATCH in down.text


def test_api_ends_with_the_loop_that_died_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def bridge(*_: object, **__: object) -> AsyncIterator[HttpAgents]:
        yield http_agents()

    broker = LoopingBroker(MemoryServer(), "api", RestartLimits(first_pause_seconds=0.001))
    monkeypatch.setattr(program, "adapters", lambda *_, **__: (broker, MemoryRegistry()))
    monkeypatch.setattr(program, "open_bridge", bridge)
    for effect in ("configure_logs", "collect_rarely"):
        monkeypatch.setattr(program, effect, lambda *_: None)

    with pytest.raises(LoopDied) as ended:
        ApiProgram(Settings(), ApiSettings(port=0)).run(lambda _: broker.dying.set())

    assert ended.value.facts["loop"] == WATCH


async def test_loop_that_dies_while_the_api_drains_does_not_make_its_stop_a_failure() -> None:
    dying = asyncio.Event()

    async def failure() -> LoopDied:
        await dying.wait()
        return LoopDied("too late")

    async def serve(sockets: list[socket.socket]) -> None:
        server.should_exit = True
        dying.set()
        await asyncio.sleep(0.01)

    server = create_autospec(AnnouncedServer, instance=True, should_exit=False)
    server.serve.side_effect = serve
    with socket.socket() as own:
        assert await serve_until(server, own, failure()) is None
