from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coditect.broker.memory.queue import MemoryDelivery
from tests.owner import ScriptedOwner
from tests.unit.agent.poison_agent import HOME
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


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder in which the handlers of `poison_agent` note their start; only this process is their home."""
    monkeypatch.setenv(HOME, str(os.getpid()))
    monkeypatch.setenv("POISON_FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def hand_backs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each task was handed back to its queue, by its input."""
    counted: Counter[str] = Counter()
    requeue = MemoryDelivery.requeue

    def count(self: MemoryDelivery) -> None:
        if self.queue.startswith("tasks.") and not self.lost:
            counted[self.message.body.decode()] += 1
        requeue(self)

    monkeypatch.setattr(MemoryDelivery, "requeue", count)
    return counted
