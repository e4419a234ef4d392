"""The bridge as its program opens it: a loop that dies is started again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coditect.integrations.http import program
from coditect.model.registration import AgentRecord
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from coditect.settings.settings import HttpAgentSettings, Settings
from coditect.telemetry.metrics import MemoryMetrics
from tests.support import eventually


class FailsAtFirst(MemoryRegistry):
    """Fails at the first look for agents, as no registry should."""

    looks = 0

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        self.looks += 1
        if self.looks == 1:
            raise RuntimeError("the fault that was asked for")
        return await super().find(search)


async def test_loop_that_looks_for_agents_and_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registrations = FailsAtFirst()

    @asynccontextmanager
    async def registry(url: str, *, prefix: str = "") -> AsyncIterator[MemoryRegistry]:
        yield registrations if prefix else MemoryRegistry()

    monkeypatch.setattr(program, "RedisRegistry", registry)

    given = {"callback_url": "http://127.0.0.1:9"}
    async with program.open_bridge(Settings(), HttpAgentSettings(hosts="*"), **given, metrics=MemoryMetrics()):
        await eventually(lambda: registrations.looks > 1)
