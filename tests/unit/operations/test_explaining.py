from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.prediction import RecentOutcomes, task_kind
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.operations.explain import Explanation, Obstacle, QueueSeen, TaskQuestion, explain, judge
from coditect.operations.locate import Found, TaskLocation, TaskPlace, task_verdict, unseen
from tests.unit.registry.fleets import records_of_any_kind
from tests.unit.registry.samples import REVIEW, SUMMARY, make_record, make_registration

QUESTION = TaskQuestion("code.review")
LATELY = RecentOutcomes(task_kind("code.review", 50), 12.0, 51.7, 0.75)
TASK = "01890a5d-ac96-774b-bcce-b302099a8057"


def queue(messages: int = 0, consumers: int = 1, *, exists: bool = True) -> QueueSeen:
    return QueueSeen("tasks.code.review.p1", exists, messages, consumers)


def offers(record: AgentRecord, capability: str) -> bool:
    return any(offer.name == capability for offer in record.registration.capabilities)


def offering(agent_id: str, *offers: Any, version: str = "1.4.0") -> AgentRecord:
    record = make_record(agent_id)
    return replace(record, registration=replace(make_registration(agent_id, offers=offers), version=version))


@pytest.mark.parametrize(
    ("agent", "question", "obstacle", "said"),
    [
        (make_record("a"), QUESTION, None, "would take it now: 4 of 4 slots are free"),
        (make_record("a", running=2), QUESTION, None, "2 of 4"),
        (
            make_record("a", recent=(LATELY,)),
            QUESTION,
            None,
            "; when picked lately: 52 ms, 75% completed (16 to 63 bytes)",
        ),
        (make_record("a", slots=1), QUESTION, None, "1 of 1"),
        (make_record("a", running=3), TaskQuestion("code.review", Priority.P0), None, "1 of 4"),
        (make_record("a", running=3), QUESTION, Obstacle.KEPT_FOR_P0, "last free slot of 4 is kept for P0"),
        (make_record("a", running=4), QUESTION, Obstacle.NO_FREE_SLOT, "all 4 slots are in use"),
        (make_record("a", limited=(("code.review", "6/m"),)), QUESTION, Obstacle.RATE_LIMITED, "the rate 6/m is used"),
        (make_record("a", limited=(("code.other", "6/m"),)), QUESTION, None, "would take it now"),
        (make_record("a", running=9, suspended=2), QUESTION, Obstacle.NO_FREE_SLOT, "2 suspended"),
        (make_record("a", awaiting_owner=3), QUESTION, None, "3 tasks of workflows wait there for a dispatcher"),
        (make_record("a", lease_ms=0), QUESTION, Obstacle.OFFLINE, "lease lapsed"),
        (make_record("a", status=AgentStatus.OFFLINE), QUESTION, Obstacle.OFFLINE, "is offline"),
        (make_record("a", status=AgentStatus.STARTING), QUESTION, Obstacle.STARTING, "still starting"),
        (make_record("a", status=AgentStatus.DRAINING), QUESTION, Obstacle.DRAINING, "takes nothing new"),
        (
            make_record("a"),
            TaskQuestion("code.review", tags=frozenset({"gpu", "fast"})),
            None,
            "would take it now: 4 of 4 slots are free; it lacks gpu, so agents with that are preferred",
        ),
        (make_record("a"), TaskQuestion("code.reviews"), Obstacle.NOT_OFFERED, "offers code.review"),
        (make_record("a"), TaskQuestion("xyz.abc"), Obstacle.NOT_OFFERED, "does not offer it"),
    ],
)
def test_each_agent_has_its_reason(agent: AgentRecord, question: TaskQuestion, obstacle: Obstacle, said: str) -> None:
    judged = judge(agent, question, [agent], queue())

    assert judged.obstacle is obstacle
    assert said in judged.text


def test_agent_of_another_version_is_told_which_version_offers_it() -> None:
    old, new = offering("a-1", SUMMARY, version="1.0.0"), offering("a-2", REVIEW, version="2.0.0")

    judged = judge(old, QUESTION, [old, new], queue())

    assert judged.obstacle is Obstacle.OTHER_VERSION
    assert judged.text == "does not offer it in version 1.0.0; 2.0.0 does"


@pytest.mark.parametrize(
    ("fleet", "seen", "sentence", "fix"),
    [
        ([make_record("a")], queue(), "a would take it now", ""),
        ([make_record("a"), make_record("b")], queue(), "a (or 1 other) would take it now", ""),
        ([make_record("a")], queue(7), "a would take it now, after 7 that wait before it", ""),
        ([make_record("a")], queue(7, 0), "a has a free slot, but no agent consumes", "start the agent again"),
        ([make_record("a")], queue(exists=False), "its queue tasks.code.review.p1 is missing", "topology apply"),
        ([], queue(exists=False), "No agent offers code.review, and it has no queue", "coditect agent run FILE"),
        ([], queue(3, 0), "No agent offers code.review now; 3 tasks in", "coditect agent run FILE"),
        (
            [],
            queue(0, 2),
            "The registry knows no agent that offers code.review, but tasks.code.review.p1 has 2 consumers",
            "doctor",
        ),
        (
            [make_record("a", running=4)],
            queue(1),
            "of those that offer it 1 without a free slot; 1 waiting before it",
            "--processes",
        ),
        (
            [make_record("a", running=3), make_record("b", running=4)],
            queue(),
            "1 with the last free slot kept for P0, 1 without a free slot",
            "p0",
        ),
        ([make_record("a", status=AgentStatus.STARTING)], queue(), "1 still starting", "few seconds"),
        ([make_record("a", status=AgentStatus.DRAINING)], queue(), "1 draining", "agent run"),
        ([make_record("a", lease_ms=0)], queue(), "1 offline", "agent run"),
        (None, queue(4, 1), "The registry does not answer", "doctor"),
        (None, queue(exists=False), "there is no such queue", "doctor"),
    ],
)
def test_verdict_is_one_sentence_with_the_way_out(
    fleet: list[AgentRecord] | None, seen: QueueSeen, sentence: str, fix: str
) -> None:
    verdict = explain(QUESTION, fleet, [seen]).verdict

    assert sentence in verdict.sentence
    assert fix in verdict.fix
    assert "\n" not in verdict.sentence
    assert bool(verdict.fix) is bool(fix)


def test_unknown_capability_names_the_nearest_and_an_agent_without_the_tags_takes_the_task() -> None:
    explanation = explain(TaskQuestion("code.revew"), [make_record("a")], [])

    assert explanation.nearest == ("code.review",)
    assert not explanation.verdict.known
    assert "did you mean code.review?" in explanation.verdict.fix

    explanation = explain(replace(QUESTION, tags=frozenset({"nothing has this"})), [make_record("a")], [queue()])

    assert explanation.verdict.takes
    assert explanation.verdict.sentence == "a would take it now"
    assert "agents with that are preferred" in explanation.agents[0].text


@given(records_of_any_kind, st.sampled_from(Priority), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_every_situation_has_an_answer_that_agrees_with_its_agents(
    fleet: list[AgentRecord], level: Priority, messages: int, consumers: int, exists: bool
) -> None:
    question = TaskQuestion("code.review", level)
    seen = QueueSeen(question.queue, exists, messages, consumers)

    explanation = explain(question, fleet, [seen])

    assert [agent.agent_id for agent in explanation.agents] == [record.agent_id for record in fleet]
    takers = any(agent.obstacle is None for agent in explanation.agents)
    strangers = exists and consumers > 0 and not any(offers(record, "code.review") for record in fleet)
    assert explanation.verdict.takes == (takers or strangers), "the sentence and the table agree"
    assert explanation.verdict.takes or explanation.verdict.fix


def found(*locations: TaskLocation, cut: tuple[str, ...] = ()) -> Found:
    return Found(locations, ("tasks.code.review.p1",), cut, 1)


def seen(place: TaskPlace, **more: Any) -> TaskLocation:
    return TaskLocation(place, "code.review", Priority.P1, **more)


EXPLAINED: Explanation = explain(QUESTION, [make_record("a", running=4)], [queue(5)])


@pytest.mark.parametrize(
    ("location", "sentence", "fix"),
    [
        (seen(TaskPlace.WORKING, agent_id=AgentId("a-1")), "a-1 works on it", ""),
        (
            seen(TaskPlace.WAITING, queue="tasks.code.review.p1", before=3),
            "It waits in tasks.code.review.p1, 3 before it. No agent would take it now",
            "--slots",
        ),
        (seen(TaskPlace.RETRYING, queue="retry.1000"), "waits in retry.1000", "wait"),
        (seen(TaskPlace.DEAD, reason="handler_error"), "given up: handler_error", f"coditect dead redrive --id {TASK}"),
        (seen(TaskPlace.UNROUTED), "No agent offered code.review", f"coditect dead redrive --id {TASK}"),
    ],
)
def test_task_that_was_seen_has_its_verdict(location: TaskLocation, sentence: str, fix: str) -> None:
    verdict = task_verdict(TASK, found(location), EXPLAINED, named=True)

    assert sentence in verdict.sentence
    assert fix in verdict.fix
    assert verdict.known


def test_most_telling_location_counts() -> None:
    both = found(seen(TaskPlace.DEAD, reason="expired"), seen(TaskPlace.WORKING, agent_id=AgentId("a-1")))

    assert task_verdict(TASK, both, None, named=False).sentence == "a-1 works on it"


@pytest.mark.parametrize("named", [True, False])
def test_what_cannot_be_known_is_said(named: bool) -> None:
    nowhere = found(cut=("tasks.code.review.p2",))

    verdict, perhaps = task_verdict(TASK, nowhere, None, named=named), unseen(nowhere, named=named)

    assert not verdict.known
    assert any("--capability" in place for place in (*perhaps, verdict.fix)) is not named
    assert any("further back in tasks.code.review.p2" in place for place in perhaps)
    assert any("ended" in place for place in perhaps)
