from __future__ import annotations

import asyncio

import pytest

from coditect import Options, Priority, TaskFailed
from coditect.aio.supervisor import Backoff
from coditect.client.client import Client
from coditect.errors import ControlPlaneRequired, InputError, NotFound, ResultTimeout, UnknownCapability
from coditect.messaging import control_plane
from coditect.model.result import Failure
from coditect.wire import routing
from coditect.wire.control import Verb
from coditect.workflow.states import TaskState
from tests.support import eventually
from tests.unit.client.scene import CAPABILITY, Scene, chain

TEN_MINUTES = 600.0


async def test_a_durable_task_is_a_workflow_of_one_node(scene: Scene) -> None:
    options = Options(priority=Priority.P0, timeout="2h", start_within="1m", deadline="1d", max_attempts=5)

    handle = await scene.client.submit(CAPABILITY, {"$from": "me"}, idempotency_key="k", options=options)

    ((verb, body),) = scene.plane.asked
    assert (verb, body["name"], body["key"], body["count"]) == (Verb.START, CAPABILITY, "k", 1)
    assert handle.task_id == f"{body['workflow']}:task"
    assert body["nodes"]["task"] == {
        "task": CAPABILITY,
        "input": {"$literal": {"$from": "me"}},
        "priority": "p0",
        "timeout": "2h",
        "start_within": "1m",
        "deadline": "1d",
        "retry": {"max_attempts": 5, "first": "1s", "cap": "1m"},
    }


async def test_any_process_gets_the_value_by_the_id(scene: Scene) -> None:
    handle = await scene.client.submit(CAPABILITY, durable=True)

    found = scene.client.tasks.get(handle.task_id)
    assert not found.done
    outcome = await found.outcome(timeout="100s")

    assert await found.result() == {"node": "task"}
    assert (outcome.agent_id, outcome.attempt, outcome.fence, found.done) == ("worker-00000001", 1, 1, True)


async def test_a_failure_is_that_of_a_task(scene: Scene) -> None:
    handle = await scene.client.submit(CAPABILITY, durable=True)
    scene.plane.only.end("failed")

    with pytest.raises(TaskFailed) as raised:
        await handle.result(timeout="100s")

    assert (raised.value.facts["message"], raised.value.facts["agent"]) == ("no such file", "worker-00000001")


async def test_a_failure_that_was_redriven_is_no_outcome_any_more(scene: Scene) -> None:
    handle = await scene.client.submit(CAPABILITY, durable=True)
    scene.plane.only.end("failed")
    with pytest.raises(TaskFailed):
        await handle.result(timeout="100s")

    scene.plane.only.failures.clear()
    scene.plane.only.end()

    assert await handle.result(timeout="100s") == {"node": "task"}


async def test_a_workflow_of_several_nodes_is_no_task(scene: Scene) -> None:
    started = await scene.client.start(chain(2))

    with pytest.raises(NotFound) as raised:
        await scene.client.tasks.get(f"{started.id}:task").row()

    assert raised.value.facts["fix"] == f"coditect workflow get {started.id}"


async def test_an_empty_key_is_refused_and_nothing_submitted(scene: Scene) -> None:
    with pytest.raises(InputError, match="another length"):
        await scene.client.submit(CAPABILITY, 1, idempotency_key="")

    assert scene.plane.asked == []


async def test_a_key_makes_a_submit_durable_and_gives_the_same_task(scene: Scene) -> None:
    first = await scene.client.submit(CAPABILITY, 1, idempotency_key="once")
    second = await scene.client.submit(CAPABILITY, 2, idempotency_key="once")

    assert first.task_id == second.task_id
    assert len(scene.plane.kept) == 1


@pytest.mark.parametrize("timeout_seconds", [TEN_MINUTES + 1, 7 * 24 * 3600.0])
async def test_what_a_stranger_registers_does_not_change_what_a_submit_is(scene: Scene, timeout_seconds: float) -> None:
    await scene.register(timeout_seconds=timeout_seconds)

    one = await scene.client.submit(CAPABILITY, 1)
    many = [handle async for handle in scene.client.submit_many(CAPABILITY, [2, 3])]

    assert not any(handle.task_id.endswith(":task") for handle in (one, *many))
    assert scene.plane.asked == []


async def test_durable_is_what_the_caller_writes_and_gives_the_same_handle(scene: Scene) -> None:
    direct = await scene.client.submit(CAPABILITY, 1)
    durable = await scene.client.submit(CAPABILITY, 1, durable=True)
    many = [handle async for handle in scene.client.submit_many(CAPABILITY, [2, 3], durable=True)]

    assert type(direct) is type(durable)
    assert all(handle.task_id.endswith(":task") for handle in (durable, *many))
    assert len(scene.plane.kept) == 3
    with pytest.raises(InputError, match="no record") as raised:
        _ = direct.run
    assert "durable=True" in str(raised.value.facts["fix"])


async def test_a_registry_that_hangs_holds_up_no_submit(scene: Scene) -> None:
    await scene.register(timeout_seconds=TEN_MINUTES + 1)
    scene.registry.slow_seconds = 60.0

    async with asyncio.timeout(20):
        for number in range(20):
            await scene.client.submit(CAPABILITY, number)

    queue = scene.server.find(routing.task_queue(CAPABILITY, Priority.P1))
    assert queue is not None and queue.stats.messages == 20


async def test_a_direct_task_of_more_than_25_minutes_is_refused_with_the_way_out(scene: Scene) -> None:
    with pytest.raises(ControlPlaneRequired) as raised:
        await scene.client.submit(CAPABILITY, 1, timeout="26m")

    assert "durable=True" in str(raised.value.facts["fix"])


async def test_a_capability_that_nobody_offers_is_refused(scene: Scene) -> None:
    with pytest.raises(UnknownCapability):
        await scene.client.submit("code.reveiw", durable=True)

    assert scene.plane.asked == []


async def test_a_durable_request_that_is_given_up_is_canceled(scene: Scene) -> None:
    kept = Options(durable=True)
    assert await scene.client.request(CAPABILITY, 1, timeout="10s", options=kept) == {"node": "task"}
    scene.plane.at_once = False

    with pytest.raises(ResultTimeout):
        await scene.client.request(CAPABILITY, 2, timeout=0.05, options=kept)

    assert [kept.state for kept in scene.plane.kept.values()] == ["completed", "canceled"]


async def test_many_with_one_key_is_a_mistake(scene: Scene) -> None:
    with pytest.raises(InputError, match="names one task"):
        async for _ in scene.client.submit_many(CAPABILITY, [1, 2], options=Options(idempotency_key="k")):
            pass


@pytest.mark.parametrize("by", ["handle", "id"])
async def test_cancel_of_a_durable_task_goes_to_the_control_plane(scene: Scene, by: str) -> None:
    scene.plane.at_once = False
    handle = await scene.client.submit(CAPABILITY, durable=True)

    if by == "handle":
        await handle.cancel(reason="no more")
    else:
        await scene.client.tasks.cancel(handle.task_id, reason="no more")

    assert (await handle.run.overview()).counts == {TaskState.CANCELED: 1}
    assert scene.plane.only.reason == "no more"


async def test_events_of_a_durable_task_are_its_own_and_those_of_its_workflow(scene: Scene) -> None:
    scene.plane.at_once = False
    handle = await scene.client.submit(CAPABILITY, durable=True)
    heard: list[str] = []

    async def listen() -> None:
        heard.extend([event.type async for event in handle.events()])

    event_stream = asyncio.ensure_future(listen())
    await eventually(lambda: Verb.GET in scene.plane.verbs())
    await scene.plane.tell(scene.broker, "node.started", handle.run.id)
    await scene.client.emit("task.progress", subject=handle.task_id, fraction=0.5)
    await scene.plane.tell(scene.broker, "workflow.completed", handle.run.id)
    await asyncio.wait_for(event_stream, 60)

    assert heard == ["node.started", "task.progress", "workflow.completed"]


def test_the_id_of_a_direct_task_cannot_be_asked_for(scene: Scene) -> None:
    with pytest.raises(InputError) as raised:
        scene.client.tasks.get("01890a5d-ac96-774b-bcce-b302099a8057")

    assert "--detach" in str(raised.value.facts["fix"])


async def test_a_durable_task_without_a_control_plane_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_plane, "WAITS", Backoff(0.01, 8.0))
    monkeypatch.setattr(control_plane, "GRACE_SECONDS", 0.01)
    await scene.broker.delete_queue("control")

    async with Client(scene.broker) as client:
        with pytest.raises(ControlPlaneRequired):
            await client.submit(CAPABILITY, idempotency_key="k")


async def test_many_are_submitted_at_once_and_those_that_were_taken_are_given_before_an_error(scene: Scene) -> None:
    scene.plane.refuses = [Failure("refused", "InputError", "Not this one")]
    taken: list[str] = []

    with pytest.raises(InputError, match="Not this one"):
        async for handle in scene.client.submit_many(CAPABILITY, range(9), durable=True, concurrency=3):
            taken.append(handle.task_id)

    assert sorted(taken) == sorted(f"{workflow}:task" for workflow in scene.plane.kept)
    assert len(taken) == 2, "nothing is sent behind the window of the failed one"
