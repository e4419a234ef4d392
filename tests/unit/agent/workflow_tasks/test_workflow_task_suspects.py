"""Workflow tasks that may have killed an agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.owner import ScriptedOwner, granting
from tests.support import eventually
from tests.unit.agent.poison_agent import HOME, poison
from tests.unit.agent.scene import Scene


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOME, str(os.getpid()))
    monkeypatch.setenv("POISON_FOLDER", str(tmp_path))


@pytest.mark.parametrize(("suspect", "where"), [(False, "home 2"), (True, "apart 2")])
async def test_claim_says_where_it_runs(scene: Scene, owner: ScriptedOwner, suspect: bool, where: str) -> None:
    owner.decide = granting(fence=3, attempt=2, suspect=suspect)
    await scene.start(poison)

    await owner.publish("poison.do", "go", age_ms=2_000)
    await eventually(lambda: owner.results)

    assert owner.values == [where]


async def test_suspect_that_kills_its_process_is_reported(scene: Scene, owner: ScriptedOwner) -> None:
    owner.decide = granting(fence=3, attempt=2, suspect=True)
    agent = await scene.start(poison)

    await owner.publish("poison.do", "die", age_ms=2_000)
    await eventually(lambda: owner.results)

    (result,) = owner.results
    failure = result.outcome.failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("process_died", True)
    assert (result.owner.fence, result.outcome.attempt, agent.broker.connected) == (3, 2, True)


async def test_attempt_after_one_that_died_with_its_process_runs_apart_unasked(
    scene: Scene, owner: ScriptedOwner
) -> None:
    await scene.start(poison)

    await owner.publish("poison.do", "go", attempt=2, errors=({"attempt": 1, "reason": "process_died"},))
    await eventually(lambda: owner.results)

    assert (owner.values, owner.claims) == (["apart 2"], [])
