"""Waits that last: woken by events, and by looking where an event was missed."""

from __future__ import annotations

import asyncio

import pytest

from coditect.client import completion, workflow_run
from coditect.wire.control import Verb
from coditect.workflow.states import WorkflowState
from tests.support import eventually
from tests.unit.client.scene import Scene, chain

SECONDS = 60.0


@pytest.fixture(autouse=True)
def long_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait would look again for as long as the test may last."""
    monkeypatch.setattr(workflow_run, "FIRST_PAUSE_SECONDS", 500.0)
    monkeypatch.setattr(workflow_run, "FIRST_HEARD_PAUSE_SECONDS", 500.0)
    monkeypatch.setattr(workflow_run, "LONGEST_HEARD_PAUSE_SECONDS", 500.0)


def listened(scene: Scene) -> bool:
    name = f"events.{scene.client.name}.1"
    found = scene.server.find(name)
    return found is not None and found.stats.consumers == 1


async def test_all_who_wait_are_woken_by_one_queue(scene: Scene) -> None:
    scene.plane.at_once = False
    runs = [await scene.client.start(chain(1)) for _ in range(3)]
    waiting = [asyncio.ensure_future(one.wait(timeout=1_000)) for one in (*runs, runs[0])]
    await eventually(lambda: scene.plane.verbs().count(Verb.GET) == 4 and listened(scene))

    for one in runs:
        scene.plane.kept[one.id].end()
        await scene.plane.tell(scene.broker, "workflow.paused", one.id)
        await scene.plane.tell(scene.broker, "workflow.completed", one.id)

    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*waiting) == [WorkflowState.COMPLETED] * 4
    assert scene.plane.verbs().count(Verb.GET) == 8
    assert scene.server.find(f"events.{scene.client.name}.2") is None


async def test_nobody_listens_when_nobody_waits_any_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "IDLE_SECONDS", 0.02)
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    waiting = asyncio.ensure_future(started.wait(timeout=1_000))
    await eventually(lambda: listened(scene))

    waiting.cancel()

    await eventually(lambda: scene.server.find(f"events.{scene.client.name}.1") is None)


async def test_who_gives_up_makes_nobody_else_deaf(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    gives_up, waiting = (asyncio.ensure_future(started.wait(timeout=1_000)) for _ in range(2))
    await eventually(lambda: scene.plane.verbs().count(Verb.GET) == 2 and listened(scene))

    gives_up.cancel()
    await asyncio.wait({gives_up})
    scene.plane.only.end()
    await scene.plane.tell(scene.broker, "workflow.completed", started.id)

    async with asyncio.timeout(SECONDS):
        assert await waiting is WorkflowState.COMPLETED


async def test_the_value_comes_with_the_look_that_follows_the_event(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    waiting = asyncio.create_task(started.result(timeout=1_000))
    await eventually(lambda: Verb.GET in scene.plane.verbs() and listened(scene))
    scene.plane.only.end()
    scene.plane.only.values["n0"] = 7
    before = len(scene.plane.verbs())
    await scene.plane.tell(scene.broker, "workflow.completed", started.id)

    assert await waiting == 7
    assert scene.plane.verbs()[before:] == [Verb.RESULT]
