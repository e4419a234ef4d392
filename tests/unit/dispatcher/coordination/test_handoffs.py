"""Handoffs of one task, asked for request by request: the test plays the agents, people and time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from coditect import Retry, Workflow
from coditect.errors import InputError, InvalidTask, NotFound, Retryable, TooLarge
from coditect.model.ids import AgentId
from coditect.model.result import Outcome
from coditect.wire import control_messages
from coditect.wire.control import Started, Verb
from coditect.wire.json import MAX_JSON_LEVELS, loads
from coditect.wire.workflow_tasks import Verdict
from coditect.workflow.states import TaskState
from dispatcher.coordination import handoffs
from dispatcher.ledger.commands import Began
from dispatcher.ledger.handlers.requests import ShardChange
from dispatcher.ledger.keyspace import DUE, HANDOFFS, TIMERS
from dispatcher.ledger.workflows.recover import learn
from tests.unit.dispatcher.ledger.nodes.test_approval_policy import answer, opened
from tests.unit.dispatcher.lone_ledger import Ledger, claim_of, completed, failed, few_steps, wide

OWNER = "owner-00000001"
OTHERS = ("able-00000002", "bold-00000003", "calm-00000004")


async def ask_others(ledger: Ledger, *, fence: int = 1, ticket: str = "t1", **more: Any) -> dict[str, Any]:
    """The owner offers the node `one` to the others."""
    body = {
        "workflow": "w",
        "node": "one",
        "fence": fence,
        "agent": OWNER,
        "to": "work.other",
        "capability": "work.other",
        "candidates": list(OTHERS),
        "reason": "not mine",
        "context": {"seen": 3},
        "timeout_ms": 60_000,
        "ticket": ticket,
        "reply_to": f"reply.{OWNER}",
    }
    return await ledger.ask(Verb.HANDOFF_REQUEST, body | more)


async def accept(ledger: Ledger, handoff: str, agent: str = OTHERS[0]) -> dict[str, Any]:
    return await ledger.ask(Verb.HANDOFF_ACCEPT, {"handoff": handoff, "agent": agent})


async def decline(ledger: Ledger, handoff: str, agent: str, reason: str = "no") -> dict[str, Any]:
    body = {"handoff": handoff, "agent": agent, "reason": reason}
    return await ledger.ask(Verb.HANDOFF_DECLINE, body)


async def withdraw(ledger: Ledger, handoff: str) -> dict[str, Any]:
    return await ledger.ask(Verb.HANDOFF_WITHDRAW, {"handoff": handoff, "by": "ada", "reason": "why"})


def offered(ledger: Ledger) -> list[str]:
    """The agents that were asked, in order."""
    offers = [out for out in ledger.messages if out.message.type == control_messages.HANDOFF]
    return [out.routing_key.removeprefix("mail.") for out in offers]


def said(ledger: Ledger) -> list[str]:
    """The events of handoffs, in order."""
    kinds = [notice.type for notice in ledger.notices]
    return [kind.removeprefix("agent.handoff.") for kind in kinds if kind.startswith("agent.handoff.")]


def news(ledger: Ledger) -> list[str]:
    """What the owner was told, by push."""
    pushed = [out.message for out in ledger.messages if out.message.type != control_messages.HANDOFF]
    return [loads(message.body)["state"] for message in pushed]


async def kept(ledger: Ledger) -> list[handoffs.HandoffRecord]:
    """The handoffs of the node `one`."""
    return [handoffs.HANDOFF_TABLE.unpack(pair) for pair in await ledger.rows(HANDOFFS, "w", "one")]


def value_of(agent: str) -> Outcome:
    return replace(completed(agent), agent_id=AgentId(agent))


ID = "w:one.1"


@pytest.fixture
async def begun(ledger: Ledger) -> Ledger:
    """A task that its owner runs, and has offered to the first of three others."""
    await ledger.start_one(retry=Retry(max_attempts=2))
    await ledger.batch(Began(Started("w", "one", 1, 1, OWNER, 1, ledger.now_ms)))
    await ask_others(ledger)
    return ledger


LOCK = {"resources": ["repo"], "mode": "exclusive", "ttl_ms": 10_000, "reply_to": "reply.x"}
MINE = {"agent": OWNER, "task": "w:one", "owner": "w:one/1/f1"}
THEIRS = {"agent": OTHERS[0], "task": "w:one", "owner": "w:one/1/f2"}


async def test_an_accepted_task_is_published_to_the_new_owner_under_a_new_fence(begun: Ledger) -> None:
    told = await accept(begun, ID)
    publication = begun.published[-1]

    assert (told["state"], told["by"]) == ("accepted", OTHERS[0])
    assert (publication.agent, publication.task.capability, publication.task.attempt) == (OTHERS[0], "work.other", 1)
    assert publication.task.owner is not None
    assert publication.task.owner.fence == 2
    assert [(row.status, row.agent, row.fence) for row in await begun.attempts("one")] == [("handed_off", OWNER, 1)]
    assert (news(begun), said(begun)) == (["accepted"], ["requested", "accepted"])
    kinds = {out.message.type for out in begun.messages}
    assert control_messages.CANCEL not in kinds, "its owner waits for the end of the handoff"


@pytest.mark.parametrize("accepted", [True, False])
async def test_the_owner_keeps_the_task_until_one_accepts_and_is_refused_then(begun: Ledger, accepted: bool) -> None:
    first = begun.published[-1]
    if accepted:
        await accept(begun, ID)
    await begun.batch(begun.finished(first, value_of(OWNER)))
    late, states = begun.seen[-1].late, await begun.states()
    if accepted:
        await begun.batch(begun.finished(begun.published[-1], value_of(OTHERS[0])))
    else:
        assert (await accept(begun, ID))["state"] == "expired"

    assert (late, states) == (accepted, {"one": TaskState.PUBLISHED if accepted else TaskState.COMPLETED})
    assert await begun.states() == {"one": TaskState.COMPLETED}
    assert (await begun.node("one")).agent == (OTHERS[0] if accepted else OWNER)
    assert len(begun.published) == 1 + accepted
    assert await begun.database.read(lambda tr: [*tr.get_range(*TIMERS.range()), *tr.get_range(*DUE.range())]) == []


async def test_a_task_that_all_decline_stays_with_its_owner_who_is_told_the_reasons(begun: Ledger) -> None:
    for agent in OTHERS:
        told = await decline(begun, ID, agent, f"{agent} is busy")
        assert (await decline(begun, ID, agent, "again"))["asked"][-1] == told["asked"][-1]

    assert told["state"] == "declined"
    assert [one["declined"] for one in told["asked"]] == [f"{agent} is busy" for agent in OTHERS]
    assert (news(begun), said(begun)) == (["declined"], ["requested", "declined", "declined", "declined"])
    await begun.batch(begun.finished(begun.published[-1], value_of(OWNER)))
    assert await begun.states() == {"one": TaskState.COMPLETED}


async def test_an_agent_that_does_not_answer_is_passed_over_and_may_decline_or_accept_later(begun: Ledger) -> None:
    await begun.pass_time(11)
    told = await decline(begun, ID, OTHERS[0], "too late")

    assert offered(begun) == list(OTHERS[:2])
    assert [one["declined"] for one in told["asked"]] == ["too late", ""]
    assert (await accept(begun, ID, OTHERS[0]))["by"] == OTHERS[0]
    assert (await accept(begun, ID, OTHERS[1]))["by"] == OTHERS[0]
    assert len(begun.published) == 2


async def test_the_end_tells_silent_agents_from_those_that_declined(begun: Ledger) -> None:
    for agent in OTHERS[:-1]:
        await decline(begun, ID, agent, "busy")
    await begun.pass_time(11)

    (handoff,) = await kept(begun)
    assert (handoff.state, handoff.why) == ("declined", "all declined or did not answer in time")


@pytest.mark.parametrize("timer_is_late", [False, True])
async def test_a_handoff_ends_with_its_time(ledger: Ledger, timer_is_late: bool) -> None:
    await ledger.start_one()
    await ask_others(ledger, timeout_ms=5_000)
    ledger.now_ms += 5_000
    if timer_is_late:
        assert (await accept(ledger, ID))["state"] == "expired"
    await ledger.pass_time(0)

    (handoff,) = await kept(ledger)
    assert (handoff.state, news(ledger), said(ledger)) == ("expired", ["expired"], ["requested", "expired"])
    assert (await accept(ledger, ID))["state"] == "expired"
    assert len(ledger.published) == 1


async def test_a_handoff_that_no_agent_could_take_ends_at_once(ledger: Ledger) -> None:
    await ledger.start_one()
    await ask_others(ledger, candidates=[])

    (handoff,) = await kept(ledger)
    assert (handoff.state, handoff.why) == ("declined", "no other living agent has that name or capability")


async def test_a_withdrawn_handoff_is_not_accepted_and_an_accepted_one_not_withdrawn(begun: Ledger) -> None:
    assert (await withdraw(begun, ID))["state"] == "withdrawn"
    assert (await accept(begun, ID))["state"] == "withdrawn"

    second = await ask_others(begun, ticket="t2")
    await accept(begun, second["handoff"])
    assert (await withdraw(begun, second["handoff"]))["state"] == "accepted"
    assert len(begun.published) == 2


@pytest.mark.parametrize("first", [accept, partial(decline, agent=OTHERS[0]), None], ids=["accept", "decline", "none"])
async def test_the_next_owner_may_hand_off_what_the_former_one_that_lost_it_had_offered(
    begun: Ledger, first: Callable[[Ledger, str], Awaitable[dict[str, Any]]] | None
) -> None:
    claim = await claim_of(begun, begun.published[0], "next-00000009")
    assert claim.verdict is Verdict.RUN
    if first is not None:
        assert (await first(begun, ID))["state"] == "expired"
    with pytest.raises(InputError, match="another attempt"):
        await ask_others(begun, ticket="t2")
    assert len(begun.published) == 1
    again = await ask_others(begun, ticket="t3", fence=claim.fence, agent="next-00000009")

    assert [one.state for one in await kept(begun)] == ["expired", "requested"]
    assert (await accept(begun, again["handoff"]))["state"] == "accepted"


async def test_a_repeated_request_gets_the_same_handoff_and_others_are_refused(begun: Ledger) -> None:
    assert (await ask_others(begun))["handoff"] == ID
    refused = {
        "already": [ask_others(begun, ticket="t2")],
        "not asked": [accept(begun, ID, "stranger-1"), decline(begun, ID, "stranger-1")],
    }
    for sentence, acts in refused.items():
        for act in acts:
            with pytest.raises(InputError, match=sentence):
                await act
    with pytest.raises(NotFound):
        await withdraw(begun, "w:one.9")
    assert len(offered(begun)) == 1


async def test_a_report_of_the_start_that_comes_after_the_request_changes_nothing(ledger: Ledger) -> None:
    await ledger.start_one()
    await ask_others(ledger)
    row = await ledger.node("one")
    assert (row.state, row.agent) == (TaskState.WORKING, OWNER)

    await ledger.batch(Began(Started("w", "one", 1, 1, OWNER, 1, ledger.now_ms)))

    assert (await accept(ledger, ID))["state"] == "accepted"


async def test_a_task_changes_hands_eight_times_at_most(ledger: Ledger) -> None:
    await ledger.start_one()
    for hop in range(handoffs.MOST_HOPS):
        asked = await ask_others(ledger, ticket=f"t{hop}", fence=1 + hop)
        await accept(ledger, asked["handoff"])

    with pytest.raises(InputError, match="too often"):
        await ask_others(ledger, ticket="more", fence=1 + handoffs.MOST_HOPS)


async def test_a_task_is_tried_again_as_the_capability_that_took_it_over_and_redriven_as_its_own(begun: Ledger) -> None:
    await accept(begun, ID)
    told = replace(failed(retryable=True), retry_ms=700, attempt=1)
    await begun.batch(begun.finished(begun.published[-1], told))
    await begun.pass_time(30)
    again = begun.published[-1].task
    await begun.batch(begun.finished(begun.published[-1], failed()))
    await begun.ask(Verb.REDRIVE, {"workflow": "w", "node": "one"})
    row = await begun.node("one")

    assert (again.capability, again.attempt) == ("work.other", 2)
    assert await begun.read(handoffs.show, task="w:one") == {"handoff": None}
    assert begun.published[-1].task.capability == begun.published[0].task.capability
    assert (row.capability, row.handoffs) == ("", 0)


async def test_locks_go_with_the_task_under_a_new_fence_and_wait_for_its_new_owner(begun: Ledger) -> None:
    held = await begun.ask(Verb.LOCK_ACQUIRE, LOCK | MINE | {"ticket": "old"})
    waits = {"agent": "d", "task": "x", "owner": "x"}
    await begun.ask(Verb.LOCK_ACQUIRE, LOCK | waits | {"ticket": "waiting"})
    await accept(begun, ID)
    told = [out.message for out in begun.messages if out.message.correlation_id == "old"]
    assert [loads(one.body)["state"] for one in told] == ["gone"], "its holder hears of it at once"

    await begun.ask(Verb.LOCK_RELEASE, {"ticket": "old"})
    for _ in range(5):
        await begun.pass_time(9)
        assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "old"}))["state"] == "gone"
        assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "waiting"}))["state"] == "waiting"
    taken = await begun.ask(Verb.LOCK_ACQUIRE, LOCK | THEIRS | {"ticket": "new"})

    assert (taken["state"], taken["fence"] > held["fence"]) == ("held", True)
    await begun.ask(Verb.LOCK_RELEASE, {"ticket": "new"})
    assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "waiting"}))["state"] == "held"


async def test_a_handed_over_lock_is_free_after_a_minute_and_its_key_stays_behind(begun: Ledger) -> None:
    key = {"resources": ["concurrency:work/x"], "mode": "at_most:1", "ticket": "key"}
    await begun.ask(Verb.LOCK_ACQUIRE, LOCK | MINE | {"ticket": "old"})
    await begun.ask(Verb.LOCK_ACQUIRE, LOCK | MINE | key)
    await accept(begun, ID)
    assert (await begun.ask(Verb.LOCK_RENEW, {"ticket": "key"}))["state"] == "held"
    other = LOCK | {"agent": "d", "task": "x", "owner": "x", "wait": False}
    assert (await begun.ask(Verb.LOCK_ACQUIRE, other | {"ticket": "t1"}))["state"] == "taken"
    for _ in range(3):
        await begun.pass_time(30)

    assert (await begun.ask(Verb.LOCK_ACQUIRE, other | {"ticket": "t2"}))["state"] == "held"


async def test_a_task_that_goes_to_a_capability_of_the_policy_is_asked_about_first() -> None:
    async with opened() as ledger:
        flow = Workflow("ship")
        flow.task("work", {"share": 50}, name="one", timeout="1m")
        await ledger.start(flow)
        asked = await ask_others(ledger, capability="deploy.release")
        told = await accept(ledger, asked["handoff"])
        assert (told["state"], await ledger.states()) == ("accepted", {"one": TaskState.AWAITING_APPROVAL})
        found, due = await learn(ledger.database, 0), await ledger.rows(DUE)
        assert (found.active.in_flight, [DUE.unpack(key)[4] for key, _ in due]) == ([], ["approval"])
        await ledger.batch(ledger.finished(ledger.published[0], value_of(OWNER)))
        assert ledger.seen[-1].late == 1

        await answer(ledger, "one")

        assert await ledger.states() == {"one": TaskState.PUBLISHED}
        assert ledger.published[-1].task.capability == "deploy.release"


async def test_a_context_that_is_too_large_or_could_not_be_read_again_is_refused(ledger: Ledger) -> None:
    await ledger.start_one()
    context: Any = "deep"
    for _ in range(MAX_JSON_LEVELS - 20):
        context = [context]
    with pytest.raises(TooLarge, match="too large"):
        await ask_others(ledger, context="x" * 70_000)
    with pytest.raises(InvalidTask, match="nested too deep"):
        await ask_others(ledger, context=context)

    assert (await ask_others(ledger, ticket="t2"))["state"] == "requested"


async def test_handoffs_are_listed_by_task_workflow_agent_and_state(begun: Ledger) -> None:
    await withdraw(begun, ID)
    await ask_others(begun, ticket="t2")

    async def ids(**wanted: Any) -> list[str]:
        page = await begun.read(handoffs.list_handoffs, **wanted)
        return [row["handoff"] for row in page["handoffs"]]

    both = ["w:one.1", "w:one.2"]
    assert await ids() == await ids(task="w:one") == await ids(workflow="w") == await ids(agent=OTHERS[0]) == both
    assert await ids(open=True) == await ids(after=["w", "one", 1]) == ["w:one.2"]
    assert await ids(agent=OTHERS[2]) == await ids(task="w:two") == []
    assert [await ids(limit=1), await ids(limit=1, after=["w", "one", 1])] == [[ID], ["w:one.2"]]
    for no_agent in (["x"], {"a": 1}):
        with pytest.raises(InvalidTask):
            await ids(agent=no_agent)


async def test_a_task_tells_the_last_handoff_by_which_it_was_taken_over(begun: Ledger) -> None:
    of_task = partial(handoffs.show, body={"task": "w:one"})
    assert await begun.database.read(of_task) == {"handoff": None}
    await accept(begun, ID)
    await ask_others(begun, ticket="t2", fence=2, agent=OTHERS[0])

    shown = await begun.database.read(of_task)
    assert (shown["handoff"], shown["by"], shown["context"]) == (ID, OTHERS[0], {"seen": 3})


async def test_a_request_that_arrives_again_after_a_later_handoff_offers_nothing(begun: Ledger) -> None:
    await withdraw(begun, ID)
    await ask_others(begun, ticket="second")
    await withdraw(begun, "w:one.2")
    offers = len(offered(begun))

    again = await ask_others(begun)

    assert (again["handoff"], again["state"]) == ("w:one.2", "withdrawn")
    assert len(offered(begun)) == offers


async def test_an_acquire_of_the_former_owner_that_arrives_again_takes_no_lock_from_the_task(begun: Ledger) -> None:
    mine = LOCK | MINE | {"ticket": "old"}
    await begun.ask(Verb.LOCK_ACQUIRE, mine)
    await accept(begun, ID)

    assert (await begun.ask(Verb.LOCK_ACQUIRE, mine))["state"] == "gone"
    assert (await begun.ask(Verb.LOCK_ACQUIRE, LOCK | THEIRS | {"ticket": "new"}))["state"] == "held"


async def test_others_request_a_handoff_for_the_owner_which_is_canceled_when_an_agent_accepts(ledger: Ledger) -> None:
    await ledger.start_one()
    await ledger.batch(Began(Started("w", "one", 1, 1, OWNER, 1, ledger.now_ms)))
    for_others: dict[str, Any] = {"fence": None, "reply_to": None, "candidates": [OTHERS[0]]}
    with pytest.raises(InputError, match="does not run the task"):
        await ask_others(ledger, agent=OTHERS[1], **for_others)

    requested = await ask_others(ledger, **for_others)
    await ledger.pass_time(15)  # the only agent that is asked has the whole time
    accepted = await accept(ledger, ID)

    told = [(out.routing_key, loads(out.message.body)) for out in ledger.messages]
    cancel = {"task_id": "w:one", "reason": f"handed off to {OTHERS[0]}", "publication": 1, "handed_off": True}
    assert (requested["state"], accepted["by"]) == ("requested", OTHERS[0])
    assert told[-1] == (f"mail.{OWNER}", cancel)
    assert control_messages.Cancel.read(cancel).handed_off


async def test_nobody_requests_a_handoff_for_others_of_a_task_that_is_not_reported_as_started(ledger: Ledger) -> None:
    await ledger.start_one()
    for agent in (OWNER, OTHERS[1]):
        with pytest.raises(Retryable, match="not reported as started yet"):
            await ask_others(ledger, agent=agent, fence=None, reply_to=None)  # type: ignore[arg-type]

    assert await ledger.states() == {"one": TaskState.PUBLISHED}


async def test_an_input_in_the_blob_store_is_not_part_of_the_offer(ledger: Ledger) -> None:
    await ledger.start_one(input={"$claim": {"sha256": "a" * 64, "bytes": 5_000_000}})
    await ask_others(ledger)

    offer = loads(ledger.messages[-1].message.body)
    assert (offer["whole"], offer["input"]) == (False, None)


async def test_a_task_amid_its_cancel_changes_hands_no_more(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    await ledger.start(wide(("a", "b", "one")))
    await ask_others(ledger, fence=(await ledger.node("one")).fence)
    ledger.goes_on = False
    few_steps(monkeypatch, 1)
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    assert (await ledger.states())["one"] is TaskState.WORKING

    assert (await accept(ledger, ID))["state"] == "expired"
    assert len(ledger.published) == 3


async def test_long_reasons_of_all_that_decline_fit_into_the_row(ledger: Ledger) -> None:
    others = [f"agent-{number:02}" for number in range(handoffs.MOST_CANDIDATES)]
    await ledger.start_one()
    await ask_others(ledger, context="x" * 60_000, candidates=others)

    for agent in others:
        told = await decline(ledger, ID, agent, "\x01\U0001f600" * 1_000)

    assert (told["state"], len(told["asked"])) == ("declined", len(others))


@pytest.mark.parametrize("number", ["9" * 5_000, "9" * 700, "0x1", "-1", "²"])
async def test_a_number_that_no_handoff_has_is_not_found(begun: Ledger, number: str) -> None:
    for verb in (Verb.HANDOFF_ACCEPT, Verb.HANDOFF_WITHDRAW):
        change = handoffs.HANDOFF_VERBS[verb]
        assert isinstance(change, ShardChange)
        with pytest.raises(NotFound):
            change.shard_key({"handoff": f"w:one.{number}"})
            await begun.ask(verb, {"handoff": f"w:one.{number}", "agent": OTHERS[0], "by": "ada"})


async def test_a_list_is_read_in_pages_of_some_bytes(ledger: Ledger) -> None:
    await ledger.start_one()
    for number in range(20):
        handoff = (await ask_others(ledger, ticket=f"t{number}", context="x" * 60_000))["handoff"]
        await withdraw(ledger, handoff)

    pages = [len(page["handoffs"]) for page in await ledger.pages(handoffs.list_handoffs)]
    assert (pages[0], sum(pages)) == (5, 20)
