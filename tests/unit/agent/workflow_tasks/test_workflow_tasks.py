"""Workflow tasks: their results go to the owner, and nothing is tried again or buried here."""

from __future__ import annotations

import asyncio

import pytest

from coditect import Agent
from coditect.errors import InvalidTask
from coditect.model.message import Message
from coditect.model.result import Status
from coditect.model.task import Limits
from coditect.wire import control_messages, routing
from coditect.wire import tasks as wire
from tests.owner import WORKFLOW, ScriptedOwner
from tests.support import eventually
from tests.unit.agent.scene import Scene
from tests.unit.agent.workflow_tasks.works import Works


async def test_result_goes_to_the_owner_and_the_delivery_is_done_with(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    agent = await scene.start(works.agent)

    task_id = await owner.publish("work.do", {"n": 1}, node="build", publication=12, fence=3, attempt=2)
    await eventually(lambda: owner.results)

    (result,), (message,) = owner.results, owner.messages
    assert (result.owner.workflow, result.owner.node, result.owner.fence) == (WORKFLOW, "build", 3)
    assert (result.publication, result.capability) == (12, "work.do")
    assert result.outcome.status is Status.COMPLETED
    assert (result.outcome.body, result.outcome.attempt) == (b'{"n":1}', 2)
    assert result.outcome.agent_id == agent.agent_id
    assert result.outcome.started_at_ms is not None
    assert result.outcome.finished_at_ms is not None
    assert (message.correlation_id, message.headers["x-coditect-task"]) == (task_id, task_id)
    assert message.message_id not in (None, task_id)
    assert (works.runs, owner.claims) == ([({"n": 1}, 3, 2)], [])
    await scene.acked("work.do")


@pytest.mark.parametrize(("kind", "retryable"), [(ValueError, True), (KeyError, False), (InvalidTask, False)])
async def test_failure_is_reported_and_neither_retried_nor_buried(
    scene: Scene, owner: ScriptedOwner, kind: type[Exception], retryable: bool
) -> None:
    works = Works()
    works.kind = kind
    agent = await scene.start(works.agent)

    await owner.publish("work.do", "fail", limits=Limits(max_attempts=5))
    await eventually(lambda: owner.results)

    failure = owner.results[0].outcome.failure
    assert failure is not None
    assert (owner.results[0].outcome.status, failure.type) == (Status.FAILED, kind.__name__)
    assert failure.retryable is retryable
    assert "on purpose" in failure.traceback
    assert (len(works.runs), scene.dead("work.do"), scene.ready_tasks("work.do")) == (1, 0, 0)
    await eventually(lambda: agent.runtime.load().failed_attempts == 1)


async def works_and_strict(scene: Scene) -> Works:
    works = Works()
    await scene.start(works.agent)
    strict = Agent("strict")

    @strict.capability("strict.do")
    async def do(number: int) -> int:
        return number

    await scene.start(strict)
    return works


async def test_what_may_not_run_is_reported_as_rejected(scene: Scene, owner: ScriptedOwner) -> None:
    works = await works_and_strict(scene)
    named = {
        wire.WORKFLOW_HEADER: WORKFLOW,
        wire.NODE_HEADER: "odd",
        wire.ORIGIN: "0",
        wire.FENCE: 4,
        wire.PUBLICATION: 9,
    }
    no_task = Message(
        b"1", headers=named | {wire.TIMEOUT_MS: "soon"}, message_id=f"{WORKFLOW}:odd", type=wire.TASK_TYPE
    )

    await owner.publish("strict.do", "no number", node="misfit", publication=1, fence=2)
    await owner.publish("work.do", 1, node="late", publication=2, fence=3, limits=Limits(deadline_ms=1))
    await owner.broker.publish(no_task, exchange=routing.TASKS, routing_key="work.do.p1")
    await eventually(lambda: len(owner.results) == 3)

    told = {(one.owner.node, one.owner.fence, one.publication): one.outcome for one in owner.results}
    assert {key: outcome.status for key, outcome in told.items()} == dict.fromkeys(
        [("misfit", 2, 1), ("late", 3, 2), ("odd", 4, 9)], Status.REJECTED
    )
    failures = {key[0]: outcome.failure for key, outcome in told.items()}
    assert {node: failure and (failure.reason, failure.retryable) for node, failure in failures.items()} == {
        "misfit": ("invalid_input", False),
        "late": ("expired", False),
        "odd": ("invalid_task", False),
    }
    assert (works.runs, scene.dead("strict.do"), scene.dead("work.do")) == ([], 0, 0)


# -- cancel -------------------------------------------------------------------------------------------------


async def test_cancel_reaches_it_and_is_reported(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    await scene.start(works.agent)
    task_id = await owner.publish("work.do", "wait")
    await eventually(lambda: works.runs)

    message = control_messages.cancel(task_id, reason="enough", publication=1)
    await owner.broker.publish(message, exchange=routing.BROADCAST, routing_key="")
    await eventually(lambda: owner.results)

    failure = owner.results[0].outcome.failure
    assert owner.results[0].outcome.status is Status.CANCELED
    assert failure is not None
    assert (failure.reason, failure.message) == ("canceled", "enough")


async def test_cancel_that_comes_again_disturbs_neither_a_clean_up_nor_a_newer_publication(
    scene: Scene, owner: ScriptedOwner
) -> None:
    gate, clean, running = asyncio.Event(), Agent("clean", slots=4), list[int]()
    cancels: list[int] = []

    @clean.capability("work.clean")
    async def work(number: int) -> None:
        running.append(number)
        try:
            await gate.wait()
        except asyncio.CancelledError:
            cancels.append(number)
            await gate.wait()  # cleans up
            raise

    agent = await scene.start(clean)
    task_id = await owner.publish("work.clean", 3, publication=3, fence=3)
    await owner.publish("work.clean", 4, publication=4, fence=5)
    await eventually(lambda: len(running) == 2)

    for _ in range(2):
        agent.runtime.cancel(control_messages.Cancel(task_id, "enough", 3))
        await eventually(lambda: cancels)
    gate.set()
    await eventually(lambda: len(owner.results) == 2)

    assert {one.publication: one.outcome.status for one in owner.results} == {3: Status.CANCELED, 4: Status.COMPLETED}
    assert cancels == [3]


@pytest.mark.parametrize(
    ("canceled", "publication", "runs"), [(None, 1, True), (3, 3, False), (3, 2, False), (3, 4, True)]
)
async def test_cancel_is_remembered_for_what_was_published_before_it(
    scene: Scene, owner: ScriptedOwner, canceled: int | None, publication: int, runs: bool
) -> None:
    works = Works()
    agent = await scene.start(works.agent)
    agent.runtime.cancel(control_messages.Cancel(f"{WORKFLOW}:work", "enough", canceled))

    await owner.publish("work.do", 1, publication=publication)
    await eventually(lambda: owner.results)

    assert owner.results[0].outcome.status is (Status.COMPLETED if runs else Status.CANCELED)
    assert bool(works.runs) is runs
