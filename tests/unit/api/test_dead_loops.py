"""An API whose loop dies is not ready within a second, and heals; for ever, the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self
from unittest.mock import create_autospec

import pytest
from httpx2 import ASGITransport, AsyncClient

from coditect.aio.supervisor import LoopDied, RestartLimits, Supervisor
from coditect.api import program
from coditect.api.application import create_app
from coditect.api.program import ApiProgram, open_services
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.integrations.http.directory import HttpAgents
from coditect.registry.memory import MemoryRegistry
from coditect.settings.api import ApiSettings
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from tests.api import ADDRESS
from tests.loops import strike_once

WATCH = "watch publishes"


class Looping(MemoryBroker):
    """A broker's twin with a loop that it needs, as the connection to RabbitMQ has some."""

    def __init__(self, server: MemoryServer, limits: RestartLimits | None = None) -> None:
        super().__init__(server, name="api")
        self._loops = Supervisor(self.health, limits=limits)
        self.dying = asyncio.Event()
        """Set, the loop dies for ever."""

    async def __aenter__(self) -> Self:
        self._loops.keep(self._watch, name=WATCH, critical=True)
        return await super().__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._loops.close()
        await super().__aexit__(*error)

    async def _watch(self) -> None:
        await self.dying.wait()
        raise RuntimeError("the fault that was asked for")


def http_agents() -> HttpAgents:
    made: HttpAgents = create_autospec(HttpAgents, instance=True, registrations=MemoryRegistry())
    return made


async def test_api_is_not_ready_while_a_loop_that_died_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestFleet() as fleet:
        broker = Looping(fleet.server)
        monkeypatch.setattr(program, "adapters", lambda *_, **__: (broker, MemoryRegistry()))
        async with (
            open_services(Settings(), ApiSettings(), http_agents()) as services,
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

    broker = Looping(MemoryServer(), RestartLimits(first_pause_seconds=0.001))
    monkeypatch.setattr(program, "adapters", lambda *_, **__: (broker, MemoryRegistry()))
    monkeypatch.setattr(program, "open_bridge", bridge)
    for effect in ("configure_logs", "collect_rarely"):
        monkeypatch.setattr(program, effect, lambda *_: None)

    with pytest.raises(LoopDied) as ended:
        ApiProgram(Settings(), ApiSettings(port=0)).run(lambda _: broker.dying.set())

    assert ended.value.facts["loop"] == WATCH
