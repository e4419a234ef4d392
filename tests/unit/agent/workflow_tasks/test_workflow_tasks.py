"""Workflow tasks: their results go to the owner, and nothing is tried again or buried here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coditect import Agent
from coditect.agent.execution import Execution, ExecutionState, Interruption
from coditect.agent.owners import Stage, TaskHeartbeats
from coditect.agent.services import Handoffs
from coditect.aio.clock import SystemClock
from coditect.errors import ControlPlaneRequired, InvalidTask
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.registration import AgentStatus
from coditect.model.result import Status
from coditect.model.task import Limits, Owner, Task
from coditect.wire import control_messages, routing
from coditect.wire import tasks as wire
from coditect.wire.control import Verb
from coditect.wire.workflow_tasks import BATCH_BYTES_LIMIT, LONGEST_BYTES, MAX_BATCHED_RESULTS
from tests.owner import WORKFLOW, ScriptedOwner, granting
from tests.support import eventually
from tests.unit.agent.poison_agent import poison
from tests.unit.agent.scene import Scene
from tests.unit.agent.workflow_tasks.works import Works, failure_reported, reported


async def test_result_goes_to_the_owner_and_the_delivery_is_done_with(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    agent = await scene.start(works.agent)

    task_id = await owner.publish("work.do", {"n": 1}, node="build", publication=12, fence=3, attempt=2)
    result = await reported(owner)

    (message,) = owner.messages
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
    failure = await failure_reported(owner)

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
    failure = await failure_reported(owner)

    assert owner.results[0].outcome.status is Status.CANCELED
    assert (failure.reason, failure.message) == ("canceled", "enough")


async def test_second_cancel_disturbs_no_clean_up_and_no_newer_publication(scene: Scene, owner: ScriptedOwner) -> None:
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

    assert (await reported(owner)).outcome.status is (Status.COMPLETED if runs else Status.CANCELED)
    assert bool(works.runs) is runs


LONG = "x" * LONGEST_BYTES
NEARLY_LONG = "x" * (LONGEST_BYTES - 2)


class Gated:
    """An agent whose handlers all end in one moment."""

    def __init__(self, slots: int) -> None:
        self.begun = 0
        self.gate = asyncio.Event()
        self.agent = Agent("gated", slots=4 + 2 * slots)

        @self.agent.capability("work.do")
        async def do(wanted: Any) -> Any:
            self.begun += 1
            await self.gate.wait()
            if wanted == "fail":
                raise ValueError("on purpose")
            return wanted

    async def end(self, scene: Scene, owner: ScriptedOwner, wanted: Sequence[Any]) -> None:
        """What they were given, all at once."""
        owner.decide = granting(fence=1)  # an agent that is held up by a busy machine asks before it begins
        await scene.start(self.agent)
        for number, one in enumerate(wanted):
            await owner.publish("work.do", one, node=f"n{number}")
        await eventually(lambda: self.begun == len(wanted))
        self.gate.set()
        await eventually(lambda: len(owner.results) == len(wanted))


async def report_types(scene: Scene, owner: ScriptedOwner, wanted: Sequence[Any]) -> list[str]:
    """The types of the messages that reported how these ended."""
    await Gated(len(wanted)).end(scene, owner, wanted)
    return sorted(str(message.type) for message in owner.messages)


async def test_values_of_one_moment_travel_together(scene: Scene, owner: ScriptedOwner) -> None:
    assert await report_types(scene, owner, [1, "two", None, [3]]) == ["coditect.results.v1"]

    bodies = {one.owner.node: one.outcome.body for one in owner.results}
    assert bodies == {"n0": b"1", "n1": b'"two"', "n2": b"null", "n3": b"[3]"}
    assert {one.owner.origin for one in owner.results} == {str(owner.shard)}
    await scene.acked("work.do")


async def test_lone_long_and_failed_results_have_messages_of_their_own(scene: Scene, owner: ScriptedOwner) -> None:
    assert await report_types(scene, owner, [1, LONG, "fail"]) == ["coditect.result.v1"] * 3

    assert [one.outcome.status for one in owner.results].count(Status.COMPLETED) == 2


@pytest.mark.parametrize(
    ("wanted", "messages"),
    [
        ([0] * (MAX_BATCHED_RESULTS + 2), 2),
        ([NEARLY_LONG] * (2 + BATCH_BYTES_LIMIT // LONGEST_BYTES), 2),
    ],
    ids=["many", "large"],
)
async def test_a_message_has_no_more_than_so_many(
    scene: Scene, owner: ScriptedOwner, wanted: Sequence[Any], messages: int
) -> None:
    assert await report_types(scene, owner, wanted) == ["coditect.results.v1"] * messages

    assert max(len(one.body) for one in owner.messages) < BATCH_BYTES_LIMIT + MAX_BATCHED_RESULTS * 200


async def test_what_nobody_took_is_told_again_each_by_itself(
    scene: Scene, owner: ScriptedOwner, caplog: pytest.LogCaptureFixture
) -> None:
    gated = Gated(3)
    await gated.end(scene, owner, ["this shard exists"])
    gated.gate.clear()
    owner.results.clear()
    for number in range(3):
        await owner.publish("work.do", number, node=f"n{number}")
    await eventually(lambda: gated.begun == 4)
    await owner.leave()

    gated.gate.set()
    await eventually(lambda: caplog.text.count("A result has no owner") == 3)
    owner.decide = granting(fence=5)
    await owner.open()

    await eventually(lambda: len(owner.results) == 3)
    assert sorted((one.owner.node, one.owner.fence) for one in owner.results) == [("n0", 5), ("n1", 5), ("n2", 5)]
    assert gated.begun == 4


@pytest.mark.parametrize(("slots", "free"), [(4, True), (1, False)])
async def test_agent_with_credit_to_spare_is_free(scene: Scene, owner: ScriptedOwner, slots: int, free: bool) -> None:
    """With a single slot it never has any: the queue may hold more."""
    await scene.start(Works(slots=slots).agent)

    await owner.publish("work.do", 1)

    assert (await reported(owner)).free is free


async def test_agent_that_drains_is_not_free(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    agent = await scene.start(works.agent)
    await owner.publish("work.do", "wait")
    await eventually(lambda: works.runs)

    stopping = asyncio.ensure_future(agent.stop())
    await eventually(lambda: agent.runtime.load().status is AgentStatus.DRAINING)
    works.gate.set()
    await stopping

    assert not (await reported(owner)).free


async def test_what_comes_to_its_own_queue_runs_unasked(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    agent = await scene.start(works.agent)

    await owner.publish("work.do", 1, to=AgentId(agent.agent_id))

    assert (await reported(owner)).free
    assert (works.runs, owner.claims) == ([(1, 1, 1)], [])


async def test_what_an_agents_own_queue_handed_on_is_claimed_however_fresh(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    owner.decide = granting(fence=8)
    await scene.start(works.agent)
    handed_on = {"x-first-death-queue": routing.next_queue(AgentId("gone-1"))}

    await owner.publish("work.do", 1, headers=handed_on)
    await eventually(lambda: owner.results)

    assert (works.runs, len(owner.claims)) == ([(1, 8, 1)], 1)


async def test_what_has_no_slot_after_all_goes_to_the_others_at_once(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works(slots=1)
    agent, broker = await scene.start(works.agent), await scene.broker()
    await owner.publish("work.do", "wait", node="one")
    await eventually(lambda: works.runs)

    await owner.publish("work.do", 2, node="two", to=AgentId(agent.agent_id))
    await eventually(lambda: scene.ready_tasks("work.do") == 1)

    delivery = await broker.get(routing.task_queue("work.do", Priority.P1))
    assert delivery is not None
    assert delivery.message.headers["x-first-death-reason"] == "rejected", "not by its time in the queue"
    works.gate.set()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("suspect", "where"), [(False, "home 2"), (True, "apart 2")])
async def test_claim_says_where_it_runs(scene: Scene, owner: ScriptedOwner, suspect: bool, where: str) -> None:
    owner.decide = granting(fence=3, attempt=2, suspect=suspect)
    await scene.start(poison)

    await owner.publish("poison.do", "go", age_ms=2_000)
    await eventually(lambda: owner.results)

    assert owner.values == [where]


@pytest.mark.usefixtures("home")
async def test_suspect_that_kills_its_process_is_reported(scene: Scene, owner: ScriptedOwner) -> None:
    owner.decide = granting(fence=3, attempt=2, suspect=True)
    agent = await scene.start(poison)

    await owner.publish("poison.do", "die", age_ms=2_000)
    failure, result = await failure_reported(owner), owner.results[0]

    assert (failure.reason, failure.retryable) == ("process_died", True)
    assert (result.owner.fence, result.outcome.attempt, agent.broker.connected) == (3, 2, True)


@pytest.mark.usefixtures("home")
async def test_attempt_after_one_that_died_with_its_process_runs_apart(scene: Scene, owner: ScriptedOwner) -> None:
    await scene.start(poison)

    await owner.publish("poison.do", "go", attempt=2, errors=({"attempt": 1, "reason": "process_died"},))
    await eventually(lambda: owner.results)

    assert (owner.values, owner.claims) == (["apart 2"], [])


@pytest.mark.parametrize(("stage", "acked"), [(Stage.GRANTED, True), (Stage.GIVEN_BACK, False)])
async def test_long_task_that_is_being_given_back_keeps_its_delivery(stage: Stage, acked: bool) -> None:
    """Its owner may not have heard yet that it must start the task again."""
    task = Task("work.do", Priority.P1, b"", owner=Owner("w", "node", "0", 1), publication=1)
    execution = Execution(task, cast(Any, SimpleNamespace(ack=lambda: None)), None)
    heartbeats = TaskHeartbeats(cast(Any, None), cast(Any, None), SystemClock(), agent_id=AgentId("a"))
    heartbeats.granted(execution)
    heartbeats.stages[execution] = stage

    await heartbeats.acked_early(execution)

    assert execution.acked_early is acked
    heartbeats.ended(execution)


REQUESTED = {"handoff": "h", "ticket": "t", "state": "requested"}
GIVEN: dict[str, Any] = {"reason": "", "context": None, "timeout_seconds": 60}


class Asked:
    """Control plane and registry: a request is answered late, a handoff that is withdrawn has this end, if any."""

    name = reply_to = "owner-1"

    def __init__(self, end: dict[str, Any] | None) -> None:
        self.end, self.withdrawn = end, 0

    async def get(self, _: str) -> None: ...

    async def find(self, _: Any) -> list[Any]:
        return []

    def new_token(self) -> str:
        return "t"

    async def ask(self, verb: Verb, _: dict[str, Any], **__: Any) -> dict[str, Any]:
        if verb is Verb.HANDOFF_REQUEST:
            await asyncio.sleep(0.05)
            return REQUESTED
        self.withdrawn += 1
        if self.end is None:
            raise ControlPlaneRequired("nobody answers")
        return REQUESTED | self.end

    def expect(self, _: str) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def forget(self, _: str) -> None: ...


@pytest.mark.parametrize("while_asked", [True, False])
@pytest.mark.parametrize(
    ("end", "interruption"),
    [
        ({"state": "accepted", "by": "billing-1"}, Interruption(canceled="handed off to billing-1", handed_off=True)),
        ({"state": "withdrawn"}, None),
        (None, None),
    ],
)
async def test_the_handler_ends_if_its_task_was_accepted_and_goes_on_otherwise(
    end: dict[str, Any] | None, interruption: Interruption | None, while_asked: bool
) -> None:
    asked = cast(Any, Asked(end))
    execution = Execution(
        Task("a.b", Priority.P1, b"1", owner=Owner("w", "n", "1", 1)),
        cast(Any, None),
        None,
        state=ExecutionState.RUNNING,
    )
    handoffs = Handoffs(asked, asked, asked)
    execution.work = cast(Any, asyncio.ensure_future(asyncio.sleep(0)))

    with pytest.raises(TimeoutError):
        if while_asked:
            await asyncio.wait_for(handoffs.request(execution, "billing", **GIVEN), 0.01)
        else:
            await asyncio.wait_for(handoffs.wait(REQUESTED, execution), 0.01)

    assert asked.withdrawn == 1
    assert execution.interruption == interruption
