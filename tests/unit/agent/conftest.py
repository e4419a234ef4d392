from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.owner import ScriptedOwner
from tests.unit.agent.scene import Scene, open_scene


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


@pytest.fixture
async def owner(scene: Scene) -> ScriptedOwner:
    """The owner of shard 0."""
    owner = ScriptedOwner(await scene.broker(), clock=scene.clock)
    await owner.open()
    return owner
