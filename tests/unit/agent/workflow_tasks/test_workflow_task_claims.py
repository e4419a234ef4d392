"""Workflow tasks that may not run unasked, deliveries of what runs or ran here, and owners that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from coditect import Agent
from coditect.agent import owners, settlement
from coditect.agent.managed import WAITING_SHARE
from coditect.agent.owners import ACQUIRE_ANSWER_SECONDS, ACQUIRE_BACKOFF, AcquireClient, AcquireRequest
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Backoff
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import base_topology, capability_queues, shard_queues
from coditect.errors import BrokerUnavailable
from coditect.messaging.rpc import Requests
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import NOT_BEGUN, Failure
from coditect.model.task import NO_LIMITS, Limits
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.headers import HEADER_PREFIX
from coditect.wire.tasks import read_task
from coditect.wire.workflow_tasks import Claim, Verdict
from tests.owner import WORKFLOW, ScriptedOwner, granting, saying
from tests.support import eventually
from tests.unit.agent.scene import Faulty, Running, Scene
from tests.unit.agent.workflow_tasks.works import Works, failure_reported, reported, returned
from tests.unit.broker.virtual_time import in_virtual_time

GRANT = Claim(Verdict.RUN, 4, 2)


async def test_task_that_came_back_runs_as_it_was_granted(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    owner.decide = granting(fence=8, attempt=3)
    await returned(scene, works, owner, value="again", publication=5, fence=2)

    agent = await scene.start(works.agent)
    result = await reported(owner)

    expected = {"workflow": WORKFLOW, "node": "work", "fence": 2, "publication": 5, "agent": agent.agent_id}
    assert owner.claims == [{**expected, "running": False, "max_attempts": 5}], "by the capability's own policy"
    assert works.runs == [("again", 8, 3)]
    assert (result.owner.fence, result.outcome.fence, result.outcome.attempt) == (8, 8, 3)
    assert result.publication == 5


async def test_task_sent_again_is_claimed_and_its_first_copy_is_not(scene: Scene, owner: ScriptedOwner) -> None:
    """A confirm was lost: both are fresh, and would run under one fence."""
    one, other = Works(slots=1), Works(slots=1)
    owner.decide = granting(fence=2)
    for works in (one, other):
        await scene.start(works.agent)
    scene.server.lose_next_confirms(1)

    await owner.publish("work.do", "wait")
    await eventually(lambda: len(one.runs + other.runs) == 2)

    assert len(owner.claims) == 1
    assert sorted(one.runs + other.runs) == [("wait", 1, 1), ("wait", 2, 1)]


@pytest.mark.parametrize(
    ("age_ms", "limits"),
    [
        (owners.FRESH_MS + 1, NO_LIMITS),
        (owners.FRESH_MS + 1, Limits(start_by_ms=1)),
        (-owners.MOST_AHEAD_MS - 1, NO_LIMITS),
        (-3_600_000, NO_LIMITS),
    ],
    ids=["old", "too late by its limit, but its owner lets it start", "published ahead", "published far ahead"],
)
async def test_task_of_any_other_age_is_claimed(
    scene: Scene, owner: ScriptedOwner, age_ms: int, limits: Limits
) -> None:
    """An agent whose clock is behind takes for fresh what may be as old as its clock is wrong."""
    works = Works()
    owner.decide = granting(fence=2)
    await scene.start(works.agent)

    await owner.publish("work.do", 1, age_ms=age_ms, limits=limits)
    await eventually(lambda: owner.results)

    assert (len(owner.claims), works.runs) == (1, [(1, 2, 1)])


async def test_stale_delivery_is_dropped(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    owner.decide = saying(Verdict.STALE)
    await returned(scene, works, owner, value=1)

    await scene.start(works.agent)
    await eventually(lambda: owner.claims)
    await scene.acked("work.do")

    assert (works.runs, owner.results) == ([], [])


@pytest.mark.parametrize(
    "answers",
    [[Claim(Verdict.WAIT), Claim(Verdict.WAIT), GRANT], [Failure("not_owner", "NotOwner", "moved"), GRANT]],
    ids=["must wait", "refused"],
)
async def test_claim_that_is_not_granted_is_asked_again(
    scene: Scene, owner: ScriptedOwner, monkeypatch: pytest.MonkeyPatch, answers: list[Claim | Failure]
) -> None:
    monkeypatch.setattr(settlement, "RETURNS", Backoff(0.01, 60.0))
    monkeypatch.setattr(owners, "ACQUIRE_BACKOFF", Backoff(0.05, 60.0))
    works, left = Works(slots=1), [*answers]
    owner.decide = lambda _: left.pop(0)
    await returned(scene, works, owner, value=1)

    await scene.start(works.agent)
    await eventually(lambda: owner.results)

    assert len(owner.claims) == len(answers)
    assert works.runs == [(1, 4, 2)]
    assert Failure in map(type, answers) or len(set(owner.claim_ids)) == 3, "each goes back to its queue first"


async def test_claim_without_an_answer_frees_its_slot_and_is_asked_again_as_the_same(
    scene: Scene, owner: ScriptedOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "ACQUIRE_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(owners, "ACQUIRE_BACKOFF", Backoff(0.05, 60.0))
    works = Works(slots=1)
    await returned(scene, works, owner, value="late")
    agent = await scene.start(works.agent)
    await eventually(lambda: len(owner.claims) == 1)
    await eventually(lambda: agent.runtime.load().suspended == 1)

    await (await scene.submit("work.do", "now")).result(timeout="100s")
    await eventually(lambda: len(owner.claims) > 1)
    owner.decide = granting()
    await eventually(lambda: owner.results)

    assert [wanted for wanted, _, _ in works.runs] == ["now", "late"]
    assert len(set(owner.claim_ids)) == 1
    await eventually(lambda: agent.runtime.load().suspended == 0)


async def test_drain_hands_back_what_waits_for_an_answer(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    await returned(scene, works, owner, value=1)
    agent = await scene.start(works.agent, drain_seconds=30.0)
    await eventually(lambda: owner.claims)

    await asyncio.wait_for(agent.stop(), 60)

    assert (works.runs, scene.ready_tasks("work.do")) == ([], 1)


async def gone_owner(scene: Scene, works: Works) -> ScriptedOwner:
    """The owner of a shard that took a result, and has lost its queues since."""
    gone = ScriptedOwner(await scene.broker(), shard=5, clock=scene.clock)
    await gone.open()
    await gone.publish("work.do", "first")
    await eventually(lambda: gone.results)
    await asyncio.sleep(0)
    await gone.leave()
    works.runs.clear()
    gone.results.clear()
    return gone


async def test_shard_that_lost_its_queues_blocks_nobody_and_loses_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settlement, "RETURNS", Backoff(0.05, 60.0))
    monkeypatch.setattr(owners, "ACQUIRE_BACKOFF", Backoff(0.05, 60.0))
    works = Works(slots=1)
    agent = await scene.start(works.agent)
    nobody = await gone_owner(scene, works)
    await nobody.publish("work.do", "early", publication=2)
    await eventually(lambda: works.runs)

    assert await (await scene.submit("work.do", "direct")).result(timeout="100s") == "direct"
    assert "A result has no owner" in caplog.text
    nobody.decide = granting(fence=2)
    await nobody.open()
    await eventually(lambda: nobody.results)

    assert nobody.values == ["early"]
    assert [wanted for wanted, _, _ in works.runs].count("early") == 1, "its value was remembered"
    assert nobody.results[0].owner.fence == 2
    await eventually(lambda: agent.runtime.load().suspended == 0)
    await scene.acked("work.do")


async def answered(scene: Scene, owner: ScriptedOwner, agent: Running, claim: Claim) -> None:
    """Its last question is, when it hears again."""
    mailbox = routing.agent_replies(AgentId(agent.agent_id))
    await eventually(lambda: (found := scene.server.find(mailbox)) is not None and found.stats.consumers)
    await owner.answer(Message(b"", correlation_id=owner.claim_ids[-1], reply_to=mailbox), claim)


async def delivered_again(scene: Scene, owner: ScriptedOwner, value: str = "wait") -> tuple[Works, Running]:
    """A task that still runs when its delivery comes again, and its agent, which has asked the owner about that."""
    works = Works()
    agent = await scene.start(works.agent)
    await owner.publish("work.do", value, fence=1)
    await eventually(lambda: works.runs)
    agent.broker.drop()
    await eventually(lambda: owner.claims)
    return works, agent


async def test_delivery_of_what_still_runs_joins_it_under_the_granted_fence(scene: Scene, owner: ScriptedOwner) -> None:
    owner.decide = granting(fence=9, attempt=1)
    works, agent = await delivered_again(scene, owner)

    works.gate.set()
    # an answer that comes before the agent hears its replies again is lost, and asked for once more; and what was
    # posted under the fence before may come behind it: its owner refuses that
    await eventually(lambda: 9 in {one.owner.fence for one in owner.results}, seconds=2 * owners.ACQUIRE_ANSWER_SECONDS)

    assert owner.claims[0]["running"] is True
    assert len(works.runs) == 1
    assert works.fences_after == [1], "the handler's effects are no newer than what it has read"
    await eventually(lambda: agent.runtime.load().running == agent.runtime.load().suspended == 0)
    await scene.acked("work.do")


@pytest.mark.parametrize("has_slot", [True, False])
async def test_what_is_granted_when_its_delivery_is_with_another_is_given_back(
    scene: Scene, owner: ScriptedOwner, monkeypatch: pytest.MonkeyPatch, has_slot: bool
) -> None:
    works = Works(slots=1)
    await returned(scene, works, owner, value=1)
    monkeypatch.setattr(owners, "ACQUIRE_ANSWER_SECONDS", 5.0 if has_slot else 0.1)
    monkeypatch.setattr(owners, "ACQUIRE_BACKOFF", Backoff(0.05, 60.0))
    agent = await scene.start(works.agent)
    await eventually(lambda: owner.claims)
    if not has_slot:
        await eventually(lambda: agent.runtime.load().suspended == 1)
        monkeypatch.setattr(owners, "ACQUIRE_ANSWER_SECONDS", 5.0)
        asked = len(owner.claims)
        await eventually(lambda: len(owner.claims) > asked)  # which waits for so long
    taken: list[Delivery] = []
    another = await scene.broker()
    await another.consume(routing.task_queue("work.do", Priority.P1), taken.append, prefetch=1)

    agent.broker.drop()
    await eventually(lambda: taken)
    await answered(scene, owner, agent, Claim(Verdict.RUN, 7, 1))
    result = await reported(owner)

    assert (result.owner.fence, result.outcome.failure) == (7, NOT_BEGUN)
    assert works.runs == []
    await eventually(lambda: agent.runtime.load().running == agent.runtime.load().suspended == 0)


async def test_what_has_failed_here_meanwhile_is_told_again(scene: Scene, owner: ScriptedOwner) -> None:
    works, agent = await delivered_again(scene, owner, "fail later")

    works.gate.set()
    await eventually(lambda: owner.results)
    await answered(scene, owner, agent, Claim(Verdict.RUN, 1, 1))
    await eventually(lambda: len(owner.results) == 2)

    failed, repeated = owner.results
    assert (await failure_reported(owner)).reason == "handler_error"
    assert (repeated.owner.fence, repeated.outcome) == (1, failed.outcome)
    assert len(works.runs) == 1


async def test_stale_delivery_of_what_still_runs_is_dropped(scene: Scene, owner: ScriptedOwner) -> None:
    owner.decide = saying(Verdict.STALE)
    works, _ = await delivered_again(scene, owner)

    works.gate.set()
    await eventually(lambda: owner.results)

    assert [one.owner.fence for one in owner.results] == [1], "its owner refuses that"
    await scene.acked("work.do")


async def once_published(
    scene: Scene, owner: ScriptedOwner, value: str, *failures: Exception, fence: int = 2, attempt: int = 1
) -> list[Any]:
    """The runs of a task of which the first reports cannot be published, until its owner has heard of it."""
    works = Works()
    owner.decide = granting(fence=fence, attempt=attempt)
    faulty = Faulty(scene.server)
    faulty.failures[routing.RESULTS] = [*failures]
    await scene.start(works.agent, broker=faulty)

    await owner.publish("work.do", value)
    await eventually(lambda: owner.results)
    return works.runs


@pytest.mark.parametrize(
    "failures", [[BrokerUnavailable("for a moment")], [ValueError("a bug"), BrokerUnavailable("for a moment")]]
)
async def test_result_whose_publish_failed_is_told_again_under_a_new_fence(
    scene: Scene, owner: ScriptedOwner, failures: list[Exception]
) -> None:
    assert await once_published(scene, owner, "once", *failures) == [("once", 1, 1)]

    assert owner.claims[0]["running"] is True
    assert ([one.owner.fence for one in owner.results], owner.values) == ([2], ["once"])


@pytest.mark.parametrize("fence", [1, 2])
async def test_unpublished_failure_is_reported_and_not_run_again(
    scene: Scene, owner: ScriptedOwner, fence: int
) -> None:
    """Its owner, which has not read the report, grants the same attempt again: to this agent under the same fence."""
    runs = await once_published(scene, owner, "fail", BrokerUnavailable("for a moment"), fence=fence)

    (report,) = owner.results
    assert runs == [("fail", 1, 1)]
    assert (await failure_reported(owner)).reason == "handler_error"
    assert (report.owner.fence, report.outcome.attempt) == (fence, 1)
    assert report.outcome.retry_ms is not None
    await scene.acked("work.do")


async def test_attempt_behind_a_failure_that_was_not_told_is_given_back(scene: Scene, owner: ScriptedOwner) -> None:
    runs = await once_published(scene, owner, "fail", BrokerUnavailable("for a moment"), attempt=2)

    (report,) = owner.results
    assert runs == [("fail", 1, 1)]
    assert (report.owner.fence, report.outcome.failure) == (2, NOT_BEGUN)


async def test_second_copy_that_waits_for_the_same_answer_joins_the_first(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    await returned(scene, works, owner, value=1)
    await owner.publish("work.do", 1)
    agent = await scene.start(works.agent)
    await eventually(lambda: owner.claims)
    await eventually(lambda: scene.ready_tasks("work.do") == 0)

    for claim_id in owner.claim_ids:
        asked = Message(b"", correlation_id=claim_id, reply_to=routing.agent_replies(AgentId(agent.agent_id)))
        await owner.answer(asked, Claim(Verdict.RUN, 7, 1))
    await eventually(lambda: owner.results)
    await scene.acked("work.do")

    assert len(works.runs) == 1


async def test_many_results_without_owner_leave_room_for_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement, "RETURNS", Backoff(30.0, 60.0))
    works = Works(slots=1)
    agent = await scene.start(works.agent)
    nobody = await gone_owner(scene, works)
    for number in range(60):
        await nobody.publish("work.do", number, node=f"n{number}")
    await eventually(lambda: agent.runtime.load().suspended == 60)

    assert await (await scene.submit("work.do", "direct")).result(timeout="100s") == "direct"


GRANTED = Claim(Verdict.RUN, 2)


class Asker:
    """An agent that has a delivery in hand and asks, and the owner of its shard, who is not there yet."""

    def __init__(self, server: MemoryServer, acquire: AcquireClient, delivery: Delivery, owner: ScriptedOwner) -> None:
        self._server = server
        self._delivery = delivery
        self.acquire = acquire
        self.owner = owner

    @property
    def question(self) -> AcquireRequest:
        task = read_task(self._delivery.message, self._delivery.routing_key)
        assert task.owner is not None
        return self.acquire.question(task, task.owner)

    def insist(self) -> asyncio.Task[Claim | None]:
        return asyncio.create_task(self.acquire.insist(self.question, self._delivery))

    def lying(self, queue: str) -> int:
        found = self._server.find(queue)
        return 0 if found is None else found.stats.messages


@asynccontextmanager
async def asker() -> AsyncIterator[Asker]:
    server = MemoryServer()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(MemoryBroker(server, name="test"))
        await broker.declare(base_topology() + capability_queues("work.do") + shard_queues(0))
        requests = await stack.enter_async_context(Requests(broker, name="a-1"))
        owner = ScriptedOwner(broker, decide=granting(fence=GRANTED.fence))
        await owner.publish("work.do")
        delivery = await broker.get("tasks.work.do.p1")
        assert delivery is not None
        yield Asker(server, AcquireClient(requests, SystemClock()), delivery, owner)


@in_virtual_time
async def test_what_an_agent_asked_that_died_is_gone_when_somebody_comes() -> None:
    async with asker() as one:
        insisting = one.insist()
        await asyncio.sleep(0.1)
        assert one.lying("control.0") == 1
        insisting.cancel()

        await asyncio.sleep(ACQUIRE_ANSWER_SECONDS + ACQUIRE_BACKOFF.first)
        await one.owner.open()
        await asyncio.sleep(1.0)

        assert (one.owner.claims, one.lying(routing.UNROUTED_QUEUE)) == ([], 0)


@pytest.mark.parametrize("seconds", [5.3, 97.0, 300.0])
def test_agent_that_lives_always_has_one_asking_in_the_queue(seconds: float) -> None:
    @in_virtual_time
    async def answered_at_once() -> None:
        async with asker() as one:
            insisting = one.insist()
            await asyncio.sleep(seconds)
            assert one.lying("control.0") == 1

            await one.owner.open()
            claim = await asyncio.wait_for(insisting, 0.1)

            assert (claim, len(one.owner.claims), one.lying(routing.UNROUTED_QUEUE)) == (GRANTED, 1, 0)

    answered_at_once()


@in_virtual_time
async def test_single_asking_is_gone_when_nobody_waits_for_its_answer() -> None:
    async with asker() as one:
        assert await one.acquire.ask(one.question) is None
        await asyncio.sleep(0.1)

        assert one.lying("control.0") == 0


MANY = 75
PLACES = 50


def _works(ran: list[Any]) -> Agent:
    agent = Agent("works", slots=2)

    @agent.capability("work.do")
    async def do(value: Any) -> Any:
        ran.append(value)
        return value

    return agent


@asynccontextmanager
async def open_fleet(ran: list[Any]) -> AsyncIterator[tuple[TestFleet, MemoryBroker]]:
    """A fleet with fewer places than messages are forged, and a stranger's connection."""
    async with (
        TestFleet(agents=[_works(ran)], settings=Settings(max_suspended=PLACES)) as fleet,
        MemoryBroker(fleet.server, name="stranger") as stranger,
    ):
        yield fleet, stranger


async def forge(broker: MemoryBroker, number: int, headers: Mapping[str, Any]) -> None:
    named = {
        HEADER_PREFIX + name: value for name, value in {"node": f"n{number}", "fence": 1, **headers}.items() if value
    }
    message = Message(b'"forged"', named, message_id=f"forged-{number}")
    await broker.publish(message, exchange=routing.TASKS, routing_key=f"work.do.p{number % 3}")


@pytest.mark.parametrize(
    "headers",
    [
        {"workflow": "none", "origin": "no such shard"},
        {"workflow": "none", "origin": "12345"},
        {"workflow": "none"},
        {"workflow": "none", "origin": "0", "publication": 7},
        {"workflow": "none", "origin": "0", "publication": 7, "node": ""},
        {"workflow": "none", "origin": "0"},
    ],
    ids=["no number", "no such shard", "none", "a real shard, no such workflow", "no node", "no publication"],
)
@pytest.mark.parametrize("fresh", [True, False])
async def test_forged_owner_costs_nobody_a_place(headers: dict[str, Any], fresh: bool) -> None:
    ran: list[Any] = []
    async with open_fleet(ran) as (fleet, stranger):
        now = {"published-at": round(fleet._epoch_ms + fleet.elapsed_seconds * 1000)} if fresh else {}
        for number in range(MANY):
            await forge(stranger, number, headers | now)
        asked = fleet.elapsed_seconds

        handles = [await fleet.submit("work.do", number) for number in range(20)]
        assert [await handle.result(int) for handle in handles] == list(range(20))
        assert fleet.elapsed_seconds - asked < 1
        await fleet.advance("10s")

        letters = await fleet.dead_letters("work.do")
        expected = 0 if fresh and headers.get("origin") == "0" else MANY  # that shard takes a result and refuses it
        assert {letter.reason for letter in letters} <= {"no_owner"}
        assert len(letters) == expected
        (agent,) = fleet.agents
        assert (agent.load.suspended, agent.load.awaiting_owner) == (0, 0)
        assert ran.count("forged") == (MANY if fresh else 0)


async def test_shard_that_says_nothing_takes_a_share_of_the_places_and_is_listed() -> None:
    ran: list[Any] = []
    async with open_fleet(ran) as (fleet, stranger):
        await stranger.declare(shard_queues(77))
        for number in range(MANY):
            await forge(stranger, number, {"workflow": "none", "origin": "77"})
        await fleet.advance("30s")

        (agent,) = fleet.agents
        (record,) = await fleet.registry.find(Search())
        assert agent.load.awaiting_owner == agent.load.suspended == PLACES // WAITING_SHARE
        assert record.load.awaiting_owner == PLACES // WAITING_SHARE

        asked = fleet.elapsed_seconds
        handles = [await fleet.submit("work.do", number) for number in range(50)]
        assert [await handle.result(int) for handle in handles] == list(range(50))
        assert fleet.elapsed_seconds - asked < 5, "the others are on their way round, and hold no slot for long"
        assert ran.count("forged") == 0
