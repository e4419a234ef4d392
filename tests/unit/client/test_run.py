from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel

from coditect import TaskCanceled, TaskFailed
from coditect.aio.supervisor import Backoff
from coditect.broker.topology import control_plane as control_queue
from coditect.client import workflow_run
from coditect.errors import InputError, ResultTimeout, TaskExpired
from coditect.messaging import control_plane
from coditect.model.result import Failure
from coditect.wire.control import Verb
from coditect.workflow.states import TaskState, WorkflowState
from tests.support import eventually
from tests.unit.client.scene import CAPABILITY, Scene, chain

SECONDS = 60.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_run, "LAST_EVENT_SECONDS", 0.01)
    monkeypatch.setattr(control_plane, "WAITS", Backoff(0.05, 8.0))


class Named(BaseModel):
    node: str


async def test_overview_nodes_and_attempts_are_read_page_by_page(scene: Scene) -> None:
    scene.plane.page = 2
    started = await scene.client.start(chain(5))

    overview = await started.overview()
    nodes = [node async for node in started.nodes()]
    attempts = [attempt async for attempt in started.attempts()]

    assert (overview.state, overview.ended, overview.total) == (WorkflowState.COMPLETED, 5, 5)
    assert [(node.name, node.state, node.after) for node in nodes[:2]] == [
        ("n0", TaskState.COMPLETED, ()),
        ("n1", TaskState.COMPLETED, ("n0",)),
    ]
    assert [attempt.node for attempt in attempts] == [node.name for node in nodes]
    assert [attempt.node async for attempt in started.attempts("n3")] == ["n3"]


async def test_the_value_of_the_last_node_or_of_one_comes_back_as_its_type(scene: Scene) -> None:
    started = await scene.client.start(chain(3))

    assert await started.result(Named, timeout=SECONDS) == Named(node="n2")
    assert await started.result(node="n0") == {"node": "n0"}


async def test_any_process_finds_a_workflow_by_its_id(scene: Scene) -> None:
    started = await scene.client.start(chain(1), idempotency_key="k")

    found = scene.client.workflows.get(started.id)

    assert await found.wait(timeout=SECONDS) is WorkflowState.COMPLETED
    assert [(row.workflow, row.key) async for row in scene.client.workflows.list()] == [(started.id, "k")]
    assert [row async for row in scene.client.workflows.list(state=WorkflowState.FAILED)] == []


async def test_listing_stops_at_what_is_wanted(scene: Scene) -> None:
    for _ in range(5):
        await scene.client.start(chain(1))

    assert len([row async for row in scene.client.workflows.list(limit=3)]) == 3
    assert scene.plane.asked[-1] == (Verb.LIST, {"after": None, "limit": 3})


async def test_wait_ends_with_the_workflow(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(2))
    waiting = asyncio.ensure_future(started.wait(timeout=SECONDS))
    await eventually(lambda: Verb.GET in scene.plane.verbs())
    assert not waiting.done()

    scene.plane.only.end("failed")

    assert await waiting is WorkflowState.FAILED


async def test_a_wait_that_is_over_leaves_the_workflow_alone(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))

    with pytest.raises(ResultTimeout) as raised:
        await started.wait(timeout=0.05)

    assert f"coditect workflow get {started.id}" in str(raised.value.facts["fix"])
    assert set(scene.plane.verbs()) == {Verb.START, Verb.GET}


async def test_a_wait_outlives_the_control_plane_and_its_queue(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    waiting = asyncio.ensure_future(started.wait(timeout=SECONDS))
    await scene.broker.delete_queue("control")
    scene.plane.only.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(_served_again(scene, waiting))

    assert waiting.result() is WorkflowState.COMPLETED


async def _served_again(scene: Scene, until: asyncio.Future[WorkflowState]) -> None:
    await scene.broker.declare(control_queue())
    async with scene.plane.serving(scene.broker, CAPABILITY):
        await asyncio.wait({until})


@pytest.mark.parametrize(
    ("end", "reason", "kind"),
    [
        ("failed", "handler_error", TaskFailed),
        ("canceled", "canceled", TaskCanceled),
        ("failed", "expired", TaskExpired),
        ("failed", "start_timeout", TaskExpired),
        ("failed", "deadline", TaskExpired),
    ],
)
async def test_an_end_without_a_value_is_an_error_with_its_facts(
    scene: Scene, end: str, reason: str, kind: type[Exception]
) -> None:
    started = await scene.client.start(chain(1))
    scene.plane.only.end(end)
    scene.plane.only.failures["n0"] = Failure(reason, "OSError", "no such file", "Traceback", fix="Look again")

    for asked in (started.result(timeout=SECONDS), started.result(node="n0", timeout=SECONDS)):
        with pytest.raises(kind) as raised:
            await asked
        facts = raised.value.facts  # type: ignore[attr-defined]
        assert (facts["workflow"], facts["message"], facts["fix"]) == (started.id, "no such file", "Look again")
        assert raised.value.__notes__ == ["At the agent:\nTraceback"]


async def test_a_skipped_node_has_no_value_and_no_error(scene: Scene) -> None:
    started = await scene.client.start(chain(2))
    scene.plane.only.end("completed", n1="skipped")

    assert await started.result(node="n1", timeout=SECONDS) is None


async def test_events_are_those_of_the_workflow_to_its_end(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    heard: list[str] = []

    async def listen() -> None:
        heard.extend([event.type async for event in started.events()])

    event_stream = asyncio.ensure_future(listen())
    await eventually(lambda: Verb.GET in scene.plane.verbs())
    await scene.plane.tell(scene.broker, "node.started", started.id, node="n0")
    await scene.plane.tell(scene.broker, "node.started", "another")
    await scene.plane.tell(scene.broker, "workflow.completed", started.id)
    await asyncio.wait_for(event_stream, SECONDS)

    assert heard == ["node.started", "workflow.completed"]


async def test_an_end_whose_event_was_missed_is_told_all_the_same(scene: Scene) -> None:
    started = await scene.client.start(chain(1))

    heard = [event async for event in started.events()]

    assert [(event.type, event.subject) for event in heard] == [("workflow.completed", started.id)]
    assert heard[0].data == {"name": "chain", "state": "completed"}


async def test_pause_resume_cancel_and_redrive_are_asked_for(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))

    await started.pause()
    paused = await started.state()
    await started.resume()
    resumed = await started.state()
    told = await started.redrive("n0", {"path": "src"}, dry_run=True)
    await started.cancel(reason="not needed")

    assert (paused, resumed) == (WorkflowState.PAUSED, WorkflowState.RUNNING)
    assert told["again"] == ["n0"]
    assert (await started.overview()).reason == "not needed"
    assert await started.state() is WorkflowState.CANCELED


async def test_redrive_from_the_recorded_input_says_none(scene: Scene) -> None:
    started = await scene.client.start(chain(1))

    await started.redrive("n0")

    assert scene.plane.asked[-1] == (Verb.REDRIVE, {"workflow": started.id, "node": "n0", "dry_run": False})


async def test_an_approval_is_answered_once(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))
    scene.plane.only.nodes["n0"]["state"] = "awaiting_approval"

    (asked,) = [row async for row in scene.client.approvals.list()]
    await scene.client.workflows.get(asked.workflow).grant(asked.node, by="ada", comment="fine")

    assert asked.question == "Ship it?"
    assert [row async for row in scene.client.approvals.list()] == []
    with pytest.raises(InputError, match="This node asks for no approval"):
        await started.deny("n0", by="bob")


async def test_a_signal_names_the_node_that_took_it_and_has_an_id(scene: Scene) -> None:
    scene.plane.at_once = False
    started = await scene.client.start(chain(1))

    kept = await started.signal("paid", {"euro": 7}, id="one")
    scene.plane.only.nodes["n0"]["state"] = "waiting"
    taken = await started.signal("paid")

    assert (kept, taken) == ("", "n0")
    sent = [body for verb, body in scene.plane.asked if verb is Verb.SIGNAL]
    assert sent[0] == {"workflow": started.id, "signal": "paid", "value": {"euro": 7}, "id": "one"}
    assert sent[1]["id"] not in ("", "one")


async def test_the_values_of_many_last_nodes_come_page_by_page(scene: Scene) -> None:
    started = await scene.client.start(chain(1))
    lasts = {f"n{number}": number for number in range(5)}
    scene.plane.kept[started.id].pages = [
        {name: lasts[name] for name in page} for page in (["n0", "n1"], ["n2", "n3"], ["n4"])
    ]

    assert await started.result(dict[str, int], timeout=SECONDS) == lasts
    assert scene.plane.verbs().count(Verb.RESULT) == 3


async def test_a_value_whose_pages_changed_meanwhile_is_asked_for_again(scene: Scene) -> None:
    started = await scene.client.start(chain(1))
    kept = scene.plane.kept[started.id]
    kept.pages = [{"n0": 0}, None]  # type: ignore[list-item]
    waiting = asyncio.ensure_future(started.result(timeout=SECONDS))
    await eventually(lambda: scene.plane.verbs().count(Verb.RESULT) >= 2)
    kept.pages = [{"n0": 0}, {"n1": 1}]

    assert await waiting == {"n0": 0, "n1": 1}


async def test_the_value_of_the_only_last_node_of_many_nodes_is_the_workflow_s(scene: Scene) -> None:
    started = await scene.client.start(chain(1))
    scene.plane.kept[started.id].pages = [{}, {"n1001": {"a": 1}}, {}]

    assert await started.result(timeout=SECONDS) == {"a": 1}


@pytest.mark.parametrize("holds", [True, False])
async def test_a_wait_asks_until_its_time_is_nearly_over(scene: Scene, holds: bool) -> None:
    scene.plane.at_once, scene.plane.holds = False, holds
    started = await scene.client.start(chain(1))

    with pytest.raises(ResultTimeout):
        await started.wait(timeout=0.6)

    assert 2 <= scene.plane.verbs().count(Verb.GET) <= 20
