"""Workflows and durable tasks without an event loop, on a scripted control plane that lives on the client's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coditect import TaskFailed, Workflow
from coditect.sync import SyncClient
from coditect.workflow.states import WorkflowState
from tests.control_plane import ScriptedPlane
from tests.unit.client.scene import CAPABILITY, chain
from tests.unit.sync.scene import SECONDS, SurroundedClient


class PlannedClient(SurroundedClient):
    """A client that brings its control plane along."""

    def __init__(self) -> None:
        self.plane = ScriptedPlane()
        super().__init__()

    async def surround(self) -> None:
        await self._around.enter_async_context(self.plane.serving(await self.link("plane"), CAPABILITY))


@pytest.fixture
def planned() -> PlannedClient:
    return PlannedClient()


@pytest.fixture
def client(planned: PlannedClient) -> Iterator[SyncClient]:
    with planned.sync() as opened:
        yield opened


def test_a_workflow_is_started_looked_at_and_waited_for(client: SyncClient) -> None:
    flow = Workflow("script")
    flow.task(CAPABILITY, 1, name="only")

    run = client.start(flow, {"a": 1}, idempotency_key="k")

    assert (run.state(), run.wait(timeout=SECONDS)) == (WorkflowState.COMPLETED, WorkflowState.COMPLETED)
    assert (run.result(dict, timeout=SECONDS), run.result(node="only")) == ({"node": "only"}, {"node": "only"})
    assert [row.name for row in run.nodes()] == [row.node for row in run.attempts()] == ["only"]
    assert [event.type for event in run.events()] == ["workflow.completed"]
    assert [row.workflow for row in client.workflows.list()] == [run.id]
    assert client.workflows.get(run.id).overview().key == "k"
    assert (run.new, client.start(flow, {"a": 1}, idempotency_key="k").new) == (True, False)


def test_a_durable_task_answers_by_itself_and_by_its_id(client: SyncClient, planned: PlannedClient) -> None:
    handle = client.submit(CAPABILITY, 1, durable=True)
    keyed = client.submit(CAPABILITY, 1, idempotency_key="k")

    assert handle.result(timeout=SECONDS) == client.tasks.get(handle.task_id).result() == {"node": "task"}
    assert (keyed.done, keyed.outcome(timeout=SECONDS).attempt, keyed.done) == (False, 1, True)
    assert [event.type for event in keyed.events()] == ["workflow.completed"]

    planned.plane.kept[handle.task_id.removesuffix(":task")].end("failed")
    with pytest.raises(TaskFailed):
        client.tasks.get(handle.task_id).result(timeout=SECONDS)


def test_triggers_are_added_listed_and_removed(client: SyncClient, planned: PlannedClient) -> None:
    flow = Workflow("build")
    flow.task("some.work")

    made = client.triggers.create("pushed", "repo.pushed", flow)

    assert [row.trigger for row in client.triggers.list()] == [made.trigger] == ["pushed"]
    client.triggers.delete("pushed")
    assert planned.plane.triggers == {}


def test_schedules_are_made_and_listed(client: SyncClient, planned: PlannedClient) -> None:
    flow = Workflow("tidy")
    flow.task("some.work")
    made = client.schedules.create("nightly", flow, every="1m")

    assert [row.schedule for row in client.schedules.list()] == [made.schedule] == ["nightly"]
    client.schedules.delete("nightly")
    assert planned.plane.schedules == {}


def test_it_is_steered_and_its_approvals_answered(client: SyncClient, planned: PlannedClient) -> None:
    planned.plane.at_once = False
    run = client.start(chain(1))
    planned.plane.only.nodes["n0"]["state"] = "awaiting_approval"

    (asked,) = client.approvals.list()
    client.workflows.get(asked.workflow).deny(asked.node, by="ada")
    run.pause()
    run.resume()
    told = run.redrive("n0", 2, dry_run=True)
    run.cancel(reason="enough")

    assert told["again"] == ["n0"]
    assert list(client.approvals.list()) == []
    assert run.overview().reason == "enough"
