from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coditect.registry.memory import MemoryRegistry
from tests.unit.agent.scene import open_scene
from tests.unit.integrations.http.stage import Stage, open_bridge


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with open_scene() as scene, open_bridge(scene, MemoryRegistry()) as opened:
        yield opened
