from __future__ import annotations

import asyncio

import pytest

from coditect import errors
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Backoff
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology
from coditect.broker.topology import control_plane as control_queue
from coditect.client.client import Client
from coditect.errors import CoditectError, ControlPlaneRequired, InvalidWorkflow, NotFound, TooLarge
from coditect.messaging import control_plane
from coditect.messaging.control_plane import asking, refusal
from coditect.model.result import Failure, Outcome, Status
from coditect.wire import routing
from coditect.wire.control import Verb
from coditect.wire.json import dumps
from coditect.workflow.states import WorkflowState
from tests.control_plane import ScriptedPlane
from tests.unit.client.scene import CAPABILITY, Scene, chain


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_plane, "WAITS", Backoff(0.01, 8.0))
    monkeypatch.setattr(control_plane, "PAUSES", Backoff(0.01, 2.0))
    monkeypatch.setattr(control_plane, "GRACE_SECONDS", 0.01)


async def test_without_a_control_plane_the_way_to_one_is_named() -> None:
    async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
        with pytest.raises(ControlPlaneRequired) as raised:
            await client.workflows.get("no-such").state()

    assert "coditect dispatcher run" in str(raised.value.facts["fix"])
    assert raised.value.exit_code == 1


async def test_a_control_plane_that_is_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_plane, "GRACE_SECONDS", 10.0)
    plane = ScriptedPlane()
    async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
        asked = asyncio.ensure_future(client.workflows.get("no-such").state())
        await asyncio.sleep(0)  # the first time it finds no queue

        async with plane.serving(broker):
            with pytest.raises(NotFound):
                await asked


async def test_a_queue_that_nobody_reads_is_no_control_plane() -> None:
    async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
        await broker.declare(base_topology() + control_queue())

        with pytest.raises(ControlPlaneRequired, match="No control plane is there"):
            await client.workflows.get("no-such").state()


async def test_a_broker_without_its_exchange_is_no_control_plane_and_not_an_unknown_workflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_plane, "GRACE_SECONDS", 0.0)
    async with MemoryBroker(server := MemoryServer()) as broker, Client(broker) as client:
        server.exchanges.delete(routing.CONTROL)

        with pytest.raises(ControlPlaneRequired, match="No control plane is there"):
            await client.workflows.get("no-such").state()


async def test_a_few_requests_leave_no_reply_queue_behind_whether_they_fail_or_not(scene: Scene) -> None:
    async with asking(scene.broker, SystemClock(), name="once") as control:
        await control.ask(Verb.STATUS, {})
        assert scene.server.find("reply.once") is not None
    with pytest.raises(NotFound):
        async with asking(scene.broker, SystemClock(), name="twice") as control:
            await control.ask(Verb.GET, {"workflow": "no-such"})

    assert [scene.server.find(f"reply.{name}") for name in ("once", "twice")] == [None, None]


async def test_what_was_not_answered_is_asked_again_and_done_once(scene: Scene) -> None:
    scene.plane.ignores = 2

    run = await scene.client.start(chain(1))

    assert scene.plane.verbs() == [Verb.START] * 3
    assert list(scene.plane.kept) == [run.id]


async def test_request_keeps_its_identity_however_often_it_is_asked_and_the_next_has_another(scene: Scene) -> None:
    run = await scene.client.start(chain(1))
    scene.plane.identities.clear()
    scene.plane.ignores, scene.plane.refuses = 2, [Failure("refused", "Retryable", "Not now", retryable=True)]

    await run.pause()
    await run.pause()

    first, *others, last = scene.plane.identities
    assert others == [first] * 3
    assert first
    assert first != last


async def test_silence_to_the_end_of_the_time_says_what_was_asked(scene: Scene) -> None:
    scene.plane.ignores = 10_000

    with pytest.raises(ControlPlaneRequired, match="does not answer") as raised:
        await scene.client._control.ask(Verb.STATUS, {}, timeout=0.1)

    assert raised.value.facts["request"] == "control.status"


async def test_a_refusal_is_the_error_that_it_names(scene: Scene) -> None:
    with pytest.raises(NotFound, match="no such workflow") as raised:
        await scene.client.workflows.get("no-such").state()

    assert raised.value.facts["fix"] == "coditect workflow list"
    assert scene.plane.verbs() == [Verb.GET]


async def test_a_refusal_that_may_be_asked_again_is(scene: Scene) -> None:
    scene.plane.refuses = [Failure("moving", "Overloaded", "The shard moves", retryable=True)] * 2

    await scene.client.start(chain(1))

    assert len(scene.plane.asked) == 3


async def test_who_answered_before_is_waited_for_through_an_outage(scene: Scene) -> None:
    run = await scene.client.start(chain(1))
    await scene.broker.delete_queue("control")

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(run.state())
        await asyncio.sleep(0)  # the first time it finds no queue
        group.create_task(_served_again(scene, asked))

    assert asked.result() == "completed"


async def _served_again(scene: Scene, until: asyncio.Future[WorkflowState]) -> None:
    async with scene.plane.serving(scene.broker, CAPABILITY):
        await asyncio.wait({until})


@pytest.mark.parametrize(
    ("named", "kind"),
    [("InvalidWorkflow", InvalidWorkflow), ("NotFound", NotFound), ("ValueError", CoditectError), ("", CoditectError)],
)
def test_an_error_that_is_none_of_ours_is_the_root(named: str, kind: type[CoditectError]) -> None:
    error = refused(Failure("refused", named, "It cannot be", retryable=True, fix="Do otherwise"), at="here")

    assert type(error) is kind
    assert error.facts["at"] == "here"
    assert (error.sentence, error.retryable, error.facts["fix"]) == ("It cannot be", True, "Do otherwise")


@pytest.mark.parametrize("named", ["Problem", "annotations", "__doc__"])
def test_a_name_of_the_module_that_is_no_error_is_the_root(named: str) -> None:
    assert hasattr(errors, named)
    assert type(refused(Failure("x", named, "no"))) is CoditectError


def refused(failure: Failure, **facts: str) -> CoditectError:
    body = dumps(failure.as_json() | {"facts": facts})
    return refusal(Outcome(Status.REJECTED, body, None, None, failure=failure))


async def test_a_request_over_the_limit_is_refused_before_it_is_sent(scene: Scene) -> None:
    with pytest.raises(TooLarge):
        await scene.client.workflows.get("x" * 2**20).cancel(reason="")

    assert scene.plane.asked == []
