"""Workflow tasks that may not run unasked, and deliveries of what runs or ran here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coditect.agent import owners, settlement
from coditect.aio.supervisor import Backoff
from coditect.broker.port import Delivery
from coditect.errors import BrokerUnavailable
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import NOT_BEGUN, Failure
from coditect.model.task import NO_LIMITS, Limits
from coditect.wire import routing
from coditect.wire.workflow_tasks import Claim, Verdict
from tests.owner import WORKFLOW, ScriptedOwner, granting, saying
from tests.support import eventually
from tests.unit.agent.scene import Faulty, Running, Scene
from tests.unit.agent.workflow_tasks.works import Works, returned

GRANT = Claim(Verdict.RUN, 4, 2)


async def test_task_that_came_back_runs_as_it_was_granted(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    owner.decide = granting(fence=8, attempt=3)
    await returned(scene, works, owner, value="again", publication=5, fence=2)

    agent = await scene.start(works.agent)
    await eventually(lambda: owner.results)

    expected = {"workflow": WORKFLOW, "node": "work", "fence": 2, "publication": 5, "agent": agent.agent_id}
    assert owner.claims == [{**expected, "running": False, "max_attempts": 5}], "by the capability's own policy"
    assert works.runs == [("again", 8, 3)]
    (result,) = owner.results
    assert (result.owner.fence, result.outcome.fence, result.outcome.attempt) == (8, 8, 3)
    assert result.publication == 5


async def test_task_that_was_sent_again_is_claimed_and_the_copy_before_it_is_not(
    scene: Scene, owner: ScriptedOwner
) -> None:
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
async def test_task_that_is_not_fresh_is_claimed(
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

    await (await (await scene.client()).submit("work.do", "now")).result(timeout="100s")
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
    client = await scene.client()

    assert await (await client.submit("work.do", "direct")).result(timeout="100s") == "direct"
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


async def test_delivery_of_what_still_runs_joins_it_under_the_granted_fence(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    owner.decide = granting(fence=9, attempt=1)
    agent = await scene.start(works.agent)
    await owner.publish("work.do", "wait", fence=1)
    await eventually(lambda: works.runs)

    agent.broker.drop()
    await eventually(lambda: owner.claims)
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
    await eventually(lambda: owner.results)

    (result,) = owner.results
    assert (result.owner.fence, result.outcome.failure) == (7, NOT_BEGUN)
    assert works.runs == []
    await eventually(lambda: agent.runtime.load().running == agent.runtime.load().suspended == 0)


async def test_what_has_failed_here_meanwhile_is_told_again(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    agent = await scene.start(works.agent)
    await owner.publish("work.do", "fail later", fence=1)
    await eventually(lambda: works.runs)
    agent.broker.drop()
    await eventually(lambda: owner.claims)

    works.gate.set()
    await eventually(lambda: owner.results)
    await answered(scene, owner, agent, Claim(Verdict.RUN, 1, 1))
    await eventually(lambda: len(owner.results) == 2)

    failed, again = owner.results
    assert failed.outcome.failure is not None
    assert failed.outcome.failure.reason == "handler_error"
    assert (again.owner.fence, again.outcome) == (1, failed.outcome)
    assert len(works.runs) == 1


async def test_stale_delivery_of_what_still_runs_is_dropped(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    owner.decide = saying(Verdict.STALE)
    agent = await scene.start(works.agent)
    await owner.publish("work.do", "wait", fence=1)
    await eventually(lambda: works.runs)

    agent.broker.drop()
    await eventually(lambda: owner.claims)
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
async def test_failure_whose_publish_failed_is_told_again_and_runs_no_second_time(
    scene: Scene, owner: ScriptedOwner, fence: int
) -> None:
    """Its owner, which has not read the report, grants the same attempt again: to this agent under the same fence."""
    runs = await once_published(scene, owner, "fail", BrokerUnavailable("for a moment"), fence=fence)

    (told,) = owner.results
    assert runs == [("fail", 1, 1)]
    assert told.outcome.failure is not None
    assert (told.outcome.failure.reason, told.owner.fence, told.outcome.attempt) == ("handler_error", fence, 1)
    assert told.outcome.retry_ms is not None
    await scene.acked("work.do")


async def test_attempt_behind_a_failure_that_was_not_told_is_given_back(scene: Scene, owner: ScriptedOwner) -> None:
    runs = await once_published(scene, owner, "fail", BrokerUnavailable("for a moment"), attempt=2)

    (told,) = owner.results
    assert runs == [("fail", 1, 1)]
    assert (told.owner.fence, told.outcome.failure) == (2, NOT_BEGUN)


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


async def test_many_results_without_an_owner_leave_room_for_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "RETURNS", Backoff(30.0, 60.0))
    works = Works(slots=1)
    agent = await scene.start(works.agent)
    nobody = await gone_owner(scene, works)
    for number in range(60):
        await nobody.publish("work.do", number, node=f"n{number}")
    await eventually(lambda: agent.runtime.load().suspended == 60)

    assert await (await (await scene.client()).submit("work.do", "direct")).result(timeout="100s") == "direct"
