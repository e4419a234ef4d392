"""Handoffs of one task, asked for request by request: the test plays the agents, people and time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from coditect import Retry, Workflow
from coditect.errors import InputError, NotFound, TooLarge
from coditect.wire.claims import Verdict
from coditect.wire.control import Started, Verb
from coditect.wire.json import loads
from coditect.workflow.states import TaskState
from dispatcher.coordination.handoffs import handoffs, queries
from dispatcher.ledger.commands import Began
from dispatcher.ledger.keyspace import ATTEMPTS, DUE, FLIGHTS, TIMERS
from dispatcher.ledger.rows import AttemptRecord
from tests.unit.dispatcher.handoffs import (
    OTHERS,
    OWNER,
    accept,
    ask_others,
    decline,
    kept,
    news,
    offered,
    said,
    value_of,
    withdraw,
)
from tests.unit.dispatcher.ledger.nodes.test_approval_policy import answer, opened
from tests.unit.dispatcher.ledger.test_batch import claim_of, one_node
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed

ID = "w:one.1"


@pytest.fixture
async def begun(ledger: Ledger) -> Ledger:
    """A task that its owner runs, and has offered to the first of three others."""
    await ledger.start(one_node(retry=Retry(max_attempts=2)))
    await ledger.batch(Began(Started("w", "one", 1, 1, OWNER, 1, ledger.now_ms)))
    await ask_others(ledger)
    return ledger


async def attempts(ledger: Ledger) -> list[AttemptRecord]:
    found = await ledger.database.read(lambda tr: tr.get_range(*ATTEMPTS.range(("w", "one"))))
    return [AttemptRecord.unpack(row) for _, row in found]


async def test_an_accepted_task_is_published_to_the_new_owner_under_a_new_fence(begun: Ledger) -> None:
    told = await accept(begun, ID)
    publication = begun.published[-1]

    assert (told["state"], told["by"]) == ("accepted", OTHERS[0])
    assert (publication.agent, publication.task.capability, publication.task.attempt) == (OTHERS[0], "work.other", 1)
    assert publication.task.owner is not None
    assert publication.task.owner.fence == 2
    assert [(one.status, one.agent, one.fence) for one in await attempts(begun)] == [("handed_off", OWNER, 1)]
    assert (news(begun), said(begun)) == (["accepted"], ["requested", "accepted"])


async def test_the_former_owner_is_refused_and_the_new_one_s_result_counts(begun: Ledger) -> None:
    first = begun.published[-1]
    await accept(begun, ID)
    await begun.batch(begun.finished(first, value_of(OWNER)))
    assert begun.seen[-1].late == 1
    assert await begun.states() == {"one": TaskState.PUBLISHED}

    await begun.batch(begun.finished(begun.published[-1], value_of(OTHERS[0])))

    assert await begun.states() == {"one": TaskState.COMPLETED}
    assert (await begun.node("one")).agent == OTHERS[0]


async def test_the_owner_keeps_the_task_until_one_accepts(begun: Ledger) -> None:
    await begun.batch(begun.finished(begun.published[-1], value_of(OWNER)))

    assert await begun.states() == {"one": TaskState.COMPLETED}
    assert (await accept(begun, ID))["state"] == "expired"
    assert len(begun.published) == 1


async def test_a_task_that_all_decline_stays_with_its_owner_who_is_told_the_reasons(begun: Ledger) -> None:
    for agent in OTHERS:
        told = await decline(begun, ID, agent, f"{agent} is busy")

    assert told["state"] == "declined"
    assert [one["declined"] for one in told["asked"]] == [f"{agent} is busy" for agent in OTHERS]
    assert (news(begun), said(begun)) == (["declined"], ["requested", "declined", "declined", "declined"])
    await begun.batch(begun.finished(begun.published[-1], value_of(OWNER)))
    assert await begun.states() == {"one": TaskState.COMPLETED}


async def test_an_agent_that_does_not_answer_is_passed_over_and_may_accept_later(begun: Ledger) -> None:
    await begun.pass_time(11)
    assert offered(begun) == list(OTHERS[:2])

    assert (await accept(begun, ID, OTHERS[0]))["by"] == OTHERS[0]
    assert (await accept(begun, ID, OTHERS[1]))["by"] == OTHERS[0]
    assert len(begun.published) == 2


async def test_the_end_tells_silent_agents_from_those_that_declined(begun: Ledger) -> None:
    for agent in OTHERS[:-1]:
        await decline(begun, ID, agent, "busy")
    await begun.pass_time(11)

    (handoff,) = await kept(begun)
    assert (handoff.state, handoff.why) == ("declined", "all declined or did not answer in time")


async def test_a_handoff_ends_with_its_time(ledger: Ledger) -> None:
    await ledger.start(one_node())
    await ask_others(ledger, timeout_ms=5_000)
    await ledger.pass_time(5)

    (handoff,) = await kept(ledger)
    assert (handoff.state, news(ledger), said(ledger)) == ("expired", ["expired"], ["requested", "expired"])
    assert (await accept(ledger, ID))["state"] == "expired"


async def test_an_acceptance_in_the_instant_of_the_end_is_refused_before_the_timer_is_due(ledger: Ledger) -> None:
    await ledger.start(one_node())
    await ask_others(ledger, timeout_ms=5_000)
    ledger.now_ms += 5_000

    assert (await accept(ledger, ID))["state"] == "expired"
    assert len(ledger.published) == 1


async def test_a_withdrawn_handoff_is_not_accepted_and_an_accepted_one_not_withdrawn(begun: Ledger) -> None:
    assert (await withdraw(begun, ID))["state"] == "withdrawn"
    assert (await accept(begun, ID))["state"] == "withdrawn"

    second = await ask_others(begun, ticket="t2")
    await accept(begun, second["handoff"])
    assert (await withdraw(begun, second["handoff"]))["state"] == "accepted"
    assert len(begun.published) == 2


async def test_an_owner_that_lost_the_task_hands_nothing_off(begun: Ledger) -> None:
    claim = await claim_of(begun, begun.published[0], "next-00000009")
    assert claim.verdict is Verdict.RUN

    assert (await accept(begun, ID))["state"] == "expired"
    with pytest.raises(InputError, match="another attempt"):
        await ask_others(begun, ticket="t2")
    assert len(begun.published) == 1


async def test_the_next_owner_may_hand_off_what_the_former_one_had_offered(begun: Ledger) -> None:
    claim = await claim_of(begun, begun.published[0], "next-00000009")

    again = await ask_others(begun, ticket="t2", fence=claim.fence, agent="next-00000009")

    assert [one.state for one in await kept(begun)] == ["expired", "requested"]
    assert (await accept(begun, again["handoff"]))["state"] == "accepted"


async def test_a_repeated_request_gets_the_same_handoff_and_a_second_one_is_refused(begun: Ledger) -> None:
    assert (await ask_others(begun))["handoff"] == ID
    with pytest.raises(InputError, match="already"):
        await ask_others(begun, ticket="t2")

    assert len(offered(begun)) == 1


async def test_a_report_of_the_start_that_comes_after_the_request_changes_nothing(ledger: Ledger) -> None:
    await ledger.start(one_node())
    await ask_others(ledger)
    row = await ledger.node("one")
    assert (row.state, row.agent) == (TaskState.WORKING, OWNER)

    await ledger.batch(Began(Started("w", "one", 1, 1, OWNER, 1, ledger.now_ms)))

    assert (await accept(ledger, ID))["state"] == "accepted"


async def test_a_task_changes_hands_eight_times_at_most(ledger: Ledger) -> None:
    await ledger.start(one_node())
    for hop in range(handoffs.MOST_HOPS):
        asked = await ask_others(ledger, ticket=f"t{hop}", fence=1 + hop)
        await accept(ledger, asked["handoff"])

    with pytest.raises(InputError, match="too often"):
        await ask_others(ledger, ticket="more", fence=1 + handoffs.MOST_HOPS)


async def test_a_failed_attempt_is_tried_again_as_the_capability_that_took_the_task_over(begun: Ledger) -> None:
    await accept(begun, ID)
    told = replace(failed(retryable=True), retry_ms=700, attempt=1)
    await begun.batch(begun.finished(begun.published[-1], told))
    await begun.pass_time(30)

    again = begun.published[-1].task
    assert (again.capability, again.attempt) == ("work.other", 2)


async def test_a_redriven_task_begins_as_its_own_capability_again(begun: Ledger) -> None:
    await accept(begun, ID)
    await begun.batch(begun.finished(begun.published[-1], failed()))
    await begun.ask(Verb.REDRIVE, {"workflow": "w", "node": "one"})

    row = await begun.node("one")
    assert await begun.database.read(partial(queries.show, body={"task": "w:one"})) == {"handoff": None}
    assert begun.published[-1].task.capability == begun.published[0].task.capability
    assert (row.capability, row.handoffs) == ("", 0)


async def test_a_canceled_workflow_is_not_handed_off(begun: Ledger) -> None:
    await begun.ask(Verb.CANCEL, {"workflow": "w", "reason": "enough"})

    assert (await accept(begun, ID))["state"] == "expired"
    assert await begun.states() == {"one": TaskState.CANCELED}


async def test_locks_go_with_the_task_under_a_new_fence_and_wait_for_its_new_owner(begun: Ledger) -> None:
    lock = {"resources": ["repo"], "mode": "exclusive", "ttl_ms": 10_000, "reply_to": "reply.x"}
    mine = {"agent": OWNER, "task": "w:one", "owner": "w:one/1/f1"}
    held = await begun.ask(Verb.LOCK_ACQUIRE, lock | mine | {"ticket": "old"})
    waits = {"agent": "d", "task": "x", "owner": "x"}
    await begun.ask(Verb.LOCK_ACQUIRE, lock | waits | {"ticket": "waiting"})
    await accept(begun, ID)
    told = [out.message for effects in begun.seen for out in effects.messages if out.message.correlation_id == "old"]
    assert [loads(one.body)["state"] for one in told] == ["gone"], "its holder hears of it at once"

    await begun.ask(Verb.LOCK_RELEASE, {"ticket": "old"})
    for _ in range(5):
        await begun.pass_time(9)
        assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "old"}))["state"] == "gone"
        assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "waiting"}))["state"] == "waiting"
    theirs = {"agent": OTHERS[0], "task": "w:one", "owner": "w:one/1/f2"}
    taken = await begun.ask(Verb.LOCK_ACQUIRE, lock | theirs | {"ticket": "new"})

    assert (taken["state"], taken["fence"] > held["fence"]) == ("held", True)
    await begun.ask(Verb.LOCK_RELEASE, {"ticket": "new"})
    assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "waiting"}))["state"] == "held"


async def test_a_handed_over_lock_that_its_task_does_not_take_is_free_after_a_minute(begun: Ledger) -> None:
    lock = {"resources": ["repo"], "mode": "exclusive", "ttl_ms": 10_000, "reply_to": "reply.x"}
    await begun.ask(Verb.LOCK_ACQUIRE, lock | {"agent": OWNER, "task": "w:one", "owner": "w:one/1/f1", "ticket": "old"})
    await accept(begun, ID)
    other = {"agent": "d", "task": "x", "owner": "x", "wait": False}
    assert (await begun.ask(Verb.LOCK_ACQUIRE, lock | other | {"ticket": "t1"}))["state"] == "taken"

    for _ in range(3):
        await begun.pass_time(30)

    assert (await begun.ask(Verb.LOCK_ACQUIRE, lock | other | {"ticket": "t2"}))["state"] == "held"


async def test_the_key_of_the_former_owner_s_capability_stays_behind(begun: Ledger) -> None:
    lock = {"resources": ["concurrency:work/x"], "mode": "at_most:1", "ttl_ms": 10_000, "reply_to": "reply.x"}
    mine = {"agent": OWNER, "task": "w:one", "owner": "w:one/1/f1"}
    await begun.ask(Verb.LOCK_ACQUIRE, lock | mine | {"ticket": "key"})
    await accept(begun, ID)

    assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "key"}))["state"] == "held"


async def test_a_task_that_goes_to_a_capability_of_the_policy_is_asked_about_first() -> None:
    async with opened() as ledger:
        flow = Workflow("ship")
        flow.task("work", {"share": 50}, name="one", timeout="1m")
        await ledger.start(flow.definition())
        asked = await ask_others(ledger, capability="deploy.release")
        told = await accept(ledger, asked["handoff"])
        assert (told["state"], await ledger.states()) == ("accepted", {"one": TaskState.AWAITING_APPROVAL})
        flights, due = await ledger.database.read(lambda tr: tr.get_ranges([FLIGHTS.range(), DUE.range()]))
        assert (flights, [DUE.unpack(key)[4] for key, _ in due]) == ([], ["approval"])
        await ledger.batch(ledger.finished(ledger.published[0], value_of(OWNER)))
        assert ledger.seen[-1].late == 1

        await answer(ledger, "one")

        assert await ledger.states() == {"one": TaskState.PUBLISHED}
        assert ledger.published[-1].task.capability == "deploy.release"


async def test_a_context_over_the_limit_is_refused(ledger: Ledger) -> None:
    await ledger.start(one_node())

    with pytest.raises(TooLarge, match="too large"):
        await ask_others(ledger, context="x" * 70_000)


async def test_a_stranger_neither_accepts_nor_declines(begun: Ledger) -> None:
    for act in (accept(begun, ID, "stranger-1"), decline(begun, ID, "stranger-1")):
        with pytest.raises(InputError, match="not asked"):
            await act
    with pytest.raises(NotFound):
        await withdraw(begun, "w:one.9")


async def test_handoffs_are_listed_by_task_workflow_agent_and_state(begun: Ledger) -> None:
    await withdraw(begun, ID)
    await ask_others(begun, ticket="t2")

    async def ids(**wanted: Any) -> list[str]:
        page = await begun.database.read(partial(queries.list_handoffs, body=wanted))
        return [row["handoff"] for row in page["handoffs"]]

    both = ["w:one.1", "w:one.2"]
    assert await ids() == await ids(task="w:one") == await ids(workflow="w") == await ids(agent=OTHERS[0]) == both
    assert await ids(open=True) == await ids(after=ID) == ["w:one.2"]
    assert await ids(agent=OTHERS[2]) == await ids(task="w:two") == []
    assert [await ids(limit=1), await ids(limit=1, after=ID)] == [[ID], ["w:one.2"]]


async def test_a_task_tells_the_last_handoff_by_which_it_was_taken_over(begun: Ledger) -> None:
    of_task = partial(queries.show, body={"task": "w:one"})
    assert await begun.database.read(of_task) == {"handoff": None}
    await accept(begun, ID)
    await ask_others(begun, ticket="t2", fence=2, agent=OTHERS[0])

    shown = await begun.database.read(of_task)
    assert (shown["handoff"], shown["by"], shown["context"]) == (ID, OTHERS[0], {"seen": 3})


async def test_an_ended_handoff_leaves_no_timer(begun: Ledger) -> None:
    await accept(begun, ID)
    await begun.batch(begun.finished(begun.published[-1], completed(1)))

    assert await begun.database.read(lambda tr: [*tr.get_range(*TIMERS.range()), *tr.get_range(*DUE.range())]) == []


async def test_a_request_that_arrives_again_after_a_later_handoff_offers_nothing(begun: Ledger) -> None:
    await withdraw(begun, ID)
    await ask_others(begun, ticket="second")
    await withdraw(begun, "w:one.2")
    offers = len(offered(begun))

    again = await ask_others(begun)

    assert (again["handoff"], again["state"]) == ("w:one.2", "withdrawn")
    assert len(offered(begun)) == offers


async def test_an_acquire_of_the_former_owner_that_arrives_again_takes_no_lock_from_the_task(begun: Ledger) -> None:
    lock = {"resources": ["repo"], "mode": "exclusive", "ttl_ms": 10_000, "reply_to": "reply.x"}
    mine = lock | {"agent": OWNER, "task": "w:one", "owner": "w:one/1/f1", "ticket": "old"}
    await begun.ask(Verb.LOCK_ACQUIRE, mine)
    await accept(begun, ID)

    assert (await begun.ask(Verb.LOCK_ACQUIRE, mine))["state"] == "gone"
    theirs = {"agent": OTHERS[0], "task": "w:one", "owner": "w:one/1/f2", "ticket": "new"}
    assert (await begun.ask(Verb.LOCK_ACQUIRE, lock | theirs))["state"] == "held"
