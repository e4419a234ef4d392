"""Waits that last: a request is held until the end, and sent again where it is not, or is lost."""

from __future__ import annotations

import asyncio

import pytest

from coditect.aio.supervisor import Backoff
from coditect.client import workflow_run
from coditect.messaging import control_plane
from coditect.wire.control import WAIT_MS, Verb
from coditect.workflow.states import WorkflowState
from tests.support import eventually
from tests.unit.client.scene import CAPABILITY, Scene, chain

SECONDS = 60.0


async def test_a_wait_is_one_request_that_is_answered_at_the_end(scene: Scene) -> None:
    scene.plane.at_once = False
    runs = [await scene.client.start(chain(1)) for _ in range(3)]
    waiting = [asyncio.ensure_future(run.wait(timeout=1_000)) for run in (*runs, runs[0])]
    await eventually(lambda: scene.plane.verbs().count(Verb.GET) == 4)

    for run in runs:
        scene.plane.kept[run.id].end()

    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*waiting) == [WorkflowState.COMPLETED] * 4
    assert scene.plane.verbs().count(Verb.GET) == 4


@pytest.mark.parametrize("durable", [False, True])
async def test_the_value_comes_with_the_answer(scene: Scene, durable: bool) -> None:
    scene.plane.at_once = False
    handle = await (scene.client.submit(CAPABILITY, durable=True) if durable else scene.client.start(chain(1)))
    waiting = asyncio.ensure_future(handle.result(timeout=1_000))
    await eventually(lambda: Verb.RESULT in scene.plane.verbs())

    scene.plane.only.end()

    assert await waiting == {"node": "task" if durable else "n0"}
    assert scene.plane.verbs() == [Verb.START, Verb.RESULT]


async def test_a_long_wait_costs_few_requests_and_one_that_is_watched_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow_run, "FIRST_HELD_SECONDS", 0.02)
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    waiting = asyncio.ensure_future(started.wait(timeout=1_000))
    await eventually(lambda: len(scene.plane.asked) == 8)
    held = [body[WAIT_MS] for verb, body in scene.plane.asked if verb is Verb.GET]
    scene.plane.only.end()
    await waiting

    assert held == sorted(held) and held[-1] > held[0] == 20
    assert workflow_run.LONGEST_SEEN_SECONDS < workflow_run.LONGEST_HELD_SECONDS


@pytest.mark.parametrize("fault", ["lost", "not held"])
async def test_a_request_that_is_lost_or_not_held_is_sent_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(control_plane, "WAITS", Backoff(0.01, 8.0))
    monkeypatch.setattr(workflow_run, "FIRST_HELD_SECONDS", 0.02 if fault == "lost" else 2.0)
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    scene.plane.ignores, scene.plane.holds = int(fault == "lost"), fault == "lost"
    waiting = asyncio.ensure_future(started.wait(timeout=1_000))
    await eventually(lambda: scene.plane.verbs().count(Verb.GET) == 3)

    scene.plane.only.end()

    async with asyncio.timeout(SECONDS):
        assert await waiting is WorkflowState.COMPLETED
