"""Locks of one shard, asked for request by request: the test plays the owners and time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from coditect.errors import InvalidTask
from coditect.wire.control import Verb
from coditect.wire.json import loads
from dispatcher.coordination import lock_rows
from dispatcher.coordination.lock_rows import TICKETS, Place, holders
from dispatcher.coordination.locks import list_locks
from dispatcher.ledger import answers
from dispatcher.ledger.keyspace import DUE, LOCK_OWNERS, LOCK_QUEUES, LOCKS, TIMERS
from dispatcher.store.transaction import Reads
from tests.unit.dispatcher.lone_ledger import Ledger

TTL_MS = 10_000


async def acquire(ledger: Ledger, ticket: str, *resources: str, mode: str = "exclusive", **more: Any) -> dict[str, Any]:
    owner = {"agent": "a", "task": ticket, "owner": ticket, "reply_to": "reply.a"}
    body = {"ticket": ticket, "resources": [*(resources or ("repo:x",))], "mode": mode, "ttl_ms": TTL_MS}
    return await ledger.ask(Verb.LOCK_ACQUIRE, body | owner | more)


async def release(ledger: Ledger, ticket: str) -> bool:
    return bool((await ledger.ask(Verb.LOCK_RELEASE, {"ticket": ticket}))["released"])


async def renew(ledger: Ledger, ticket: str) -> dict[str, Any]:
    return await ledger.ask(Verb.LOCK_RENEW, {"ticket": ticket})


async def states(ledger: Ledger, *tickets: str) -> dict[str, str]:
    return {ticket: (await renew(ledger, ticket))["state"] for ticket in tickets}


def told(ledger: Ledger) -> dict[str, str]:
    """The state that was last pushed to the owner of each ticket."""
    assert {(out.exchange, out.routing_key) for out in ledger.messages} <= {("coditect.replies", "reply.a")}
    return {out.message.correlation_id or "": loads(out.message.body)["state"] for out in ledger.messages}


def events(ledger: Ledger) -> list[tuple[str, dict[str, Any]]]:
    """The events about locks, in order, each with its facts."""
    return [(notice.type, dict(notice.facts)) for notice in ledger.notices]


async def test_a_refused_and_a_waiting_request_get_the_holders_with_their_reasons(ledger: Ledger) -> None:
    fence = (await acquire(ledger, "1", "repo:x", "repo:y", agent="b", reason="release 17"))["fence"]

    taken = await acquire(ledger, "2", "repo:x", wait=False)
    waiting = await acquire(ledger, "3", "repo:x")
    again = [await acquire(ledger, "2", "repo:x", wait=False), await acquire(ledger, "3", "repo:x")]
    behind = await acquire(ledger, "4", "repo:x", wait=False)
    renewed = await renew(ledger, "3")

    holder = {"resource": "repo:x", "agent": "b", "task": "1", "fence": fence, "reason": "release 17"}
    assert [one["holders"] for one in (taken, waiting, *again, behind)] == [[holder]] * 5
    assert "holders" not in renewed


async def test_holders_are_read_of_five_places_only(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = [f"repo:{number:02}" for number in range(32)]
    for number, resource in enumerate(resources):
        await acquire(ledger, f"held {number}", resource)
    read, places = list[str](), lock_rows.places

    def noted(tr: Reads, resource: str, *, before: int | None = None, first: int) -> Iterator[Place]:
        read.append(resource)
        assert first == 5, "together"
        return places(tr, resource, before=before, first=first)

    monkeypatch.setattr(lock_rows, "is_barred", lambda *_: True)
    monkeypatch.setattr(lock_rows, "places", noted)
    taken = await acquire(ledger, "1", *resources, wait=False)

    assert [one["resource"] for one in taken["holders"]] == read == resources[:5]


async def test_a_lock_has_its_reason_and_metadata_in_the_listing_and_in_its_events(ledger: Ledger) -> None:
    purpose: dict[str, Any] = {"reason": "release 17", "metadata": {"run": 17}}
    await acquire(ledger, "1", **purpose)
    await acquire(ledger, "2", agent="b", reason="another", metadata={"run": 18})
    rows = (await ledger.read(list_locks))["locks"]
    await release(ledger, "1")
    await ledger.ask(Verb.LOCK_RELEASE, {"agent": "b", "reason": "it is gone"})

    assert [(row["reason"], row["metadata"]) for row in rows] == [("release 17", {"run": 17}), ("another", {"run": 18})]
    assert [(kind, one["agent"], one["reason"], one["metadata"]) for kind, one in events(ledger)] == [
        ("lock.acquired", "a", "release 17", {"run": 17}),
        ("lock.released", "a", "release 17", {"run": 17}),
        ("lock.acquired", "b", "another", {"run": 18}),
        ("lock.lost", "b", "it is gone", {"run": 18}),
    ]
    assert events(ledger)[-1][1]["lock_reason"] == "another"


async def test_the_keys_of_concurrency_limits_have_no_events_and_name_no_holders(ledger: Ledger) -> None:
    await acquire(ledger, "1", "concurrency:build/shop", mode="at_most:1")
    waiting = await acquire(ledger, "2", "concurrency:build/shop", mode="at_most:1")
    await release(ledger, "1")

    assert (events(ledger), waiting["holders"]) == ([], [])


async def test_a_lock_is_renewed_and_released_under_its_own_fence_only(ledger: Ledger) -> None:
    fence = (await acquire(ledger, "1"))["fence"]
    wrong, right = {"ticket": "1", "fence": fence + 1}, {"ticket": "1", "fence": fence}

    refused = [(await ledger.ask(Verb.LOCK_RENEW, wrong))["state"], (await ledger.ask(Verb.LOCK_RELEASE, wrong))]
    kept = (await ledger.ask(Verb.LOCK_RENEW, right))["state"]
    released = (await ledger.ask(Verb.LOCK_RELEASE, right))["released"]

    assert refused == ["gone", {"released": 0, "more": False}]
    assert (kept, released) == ("held", 1)


async def test_a_lock_s_row_is_read_as_it_was_written(ledger: Ledger) -> None:
    await acquire(ledger, "1", "a", reason="why")

    ((key, found),) = await ledger.rows(LOCKS)
    written = b'["a","1","1","exclusive",["x"],10000,"reply.a",1,1,5,10005,"why",{"run":17}]'
    await ledger.database.run(lambda tr: TICKETS.write(tr, TICKETS.unpack((key, written))))

    assert TICKETS.unpack((key, found)).reason == "why"
    assert await ledger.rows(LOCKS) == [(key, written)]


async def test_a_taken_lock_is_refused_until_it_is_released_and_each_grant_has_a_higher_fence(ledger: Ledger) -> None:
    first = await acquire(ledger, "1")
    repeated = await acquire(ledger, "1")
    taken = await acquire(ledger, "2", wait=False)
    assert await release(ledger, "1")
    second = await acquire(ledger, "3")
    assert not await release(ledger, "1")
    await release(ledger, "3")
    ledger.policy = replace(ledger.policy, floor=5_000_000_000)  # an older copy was restored
    third = await acquire(ledger, "4")

    assert repeated == first
    assert [one["state"] for one in (first, taken, second, third)] == ["held", "taken", "held", "held"]
    assert third["fence"] > 5_000_000_000 > second["fence"] > first["fence"] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"reason": "x" * 501},
        {"reason": 1},
        {"metadata": []},
        {"metadata": 0},
        {"metadata": {"x": "x" * 4_000}},
        {"resources": []},
        {"resources": "x"},
        {"mode": "odd"},
        {"mode": "at_most:0"},
        {"mode": "at_most:" + "9" * 5_000},
        {"owner": ""},
    ],
)
async def test_a_request_that_is_no_lock_is_refused(ledger: Ledger, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask):
        await acquire(ledger, "1", **wrong)


async def test_waiters_are_granted_in_order_of_arrival_and_told(ledger: Ledger) -> None:
    fences = [(await acquire(ledger, "1"))["fence"]]
    waiting = [(await acquire(ledger, ticket))["state"] for ticket in ("2", "3")]

    for held, ticket in (("1", "2"), ("2", "3")):
        await release(ledger, held)
        assert told(ledger)[ticket] == "held"
        fences.append((await renew(ledger, ticket))["fence"])

    assert waiting == ["waiting", "waiting"]
    assert fences == sorted(set(fences))


async def test_readers_share_and_a_writer_among_them_is_not_starved(ledger: Ledger) -> None:
    for ticket in ("r1", "r2"):
        await acquire(ledger, ticket, mode="shared")
    await acquire(ledger, "w")
    for ticket in ("r3", "r4"):
        await acquire(ledger, ticket, mode="shared")
    first = await states(ledger, "r1", "r2", "w", "r3", "r4")

    await release(ledger, "r1")
    await release(ledger, "r2")
    second = await states(ledger, "w", "r3", "r4")
    await release(ledger, "w")

    assert first == {"r1": "held", "r2": "held", "w": "waiting", "r3": "waiting", "r4": "waiting"}
    assert second == {"w": "held", "r3": "waiting", "r4": "waiting"}
    assert await states(ledger, "r3", "r4") == {"r3": "held", "r4": "held"}


async def test_several_resources_are_granted_in_one_step(ledger: Ledger) -> None:
    await acquire(ledger, "1", "x")
    await acquire(ledger, "2", "y")
    await acquire(ledger, "both", "x", "y")

    await release(ledger, "1")
    half = await states(ledger, "both")
    await release(ledger, "2")

    assert (half, await states(ledger, "both")) == ({"both": "waiting"}, {"both": "held"})


async def test_a_reader_behind_one_that_waits_elsewhere_is_granted(ledger: Ledger) -> None:
    await acquire(ledger, "w", "x", "y")
    await acquire(ledger, "y", "y")
    await acquire(ledger, "both", "x", "y", mode="shared")
    await acquire(ledger, "r", "x", mode="shared")

    await release(ledger, "w")

    assert await states(ledger, "y", "both", "r") == {"y": "held", "both": "waiting", "r": "held"}


async def test_the_waiter_that_closes_a_cycle_is_refused_with_the_cycle(ledger: Ledger) -> None:
    for number, resource in enumerate(("x", "y", "z")):
        await acquire(ledger, f"{number}", resource, owner=f"owner {number}")
    itself = await acquire(ledger, "0x", "x", owner="owner 0")
    await acquire(ledger, "0y", "y", owner="owner 0")
    await acquire(ledger, "1z", "z", owner="owner 1")
    refused = await acquire(ledger, "2x", "x", owner="owner 2")

    assert (itself["state"], len(itself["cycle"])) == ("deadlock", 1)
    assert refused["state"] == "deadlock"
    cycle = [(link["owner"], link["waits_for"]) for link in refused["cycle"]]
    assert cycle == [("owner 2", "x"), ("owner 0", "y"), ("owner 1", "z")]
    assert await states(ledger, "2x", "2") == {"2x": "gone", "2": "held"}
    await release(ledger, "2")
    assert await states(ledger, "1z") == {"1z": "held"}


async def test_a_ticket_lives_as_long_as_it_is_renewed_and_no_longer(ledger: Ledger) -> None:
    await acquire(ledger, "1")
    await acquire(ledger, "2")
    for _ in range(5):
        await ledger.pass_time(TTL_MS / 1000 / 2)
        assert await states(ledger, "1", "2") == {"1": "held", "2": "waiting"}

    await ledger.pass_time(TTL_MS / 1000 - 1)
    await renew(ledger, "2")
    await ledger.pass_time(1)

    assert told(ledger) == {"1": "gone", "2": "held"}


async def test_a_new_owner_of_the_shard_gives_each_lock_one_full_time(ledger: Ledger) -> None:
    await acquire(ledger, "1")
    ledger.policy = replace(ledger.policy, since_ms=ledger.now_ms + TTL_MS)

    await ledger.pass_time(TTL_MS / 1000 * 1.9)
    first = told(ledger)
    await ledger.pass_time(TTL_MS / 1000 * 0.1)

    assert (first, told(ledger)) == ({}, {"1": "gone"})


async def test_a_forced_release_is_told_with_its_reason_and_the_next_fence_is_higher(ledger: Ledger) -> None:
    fence = (await acquire(ledger, "1"))["fence"]
    await acquire(ledger, "2")

    answer = await ledger.ask(Verb.LOCK_RELEASE, {"resource": "repo:x", "reason": "it hangs"})

    assert answer == {"released": 1, "more": False}
    assert told(ledger) == {"1": "gone", "2": "held"}
    assert (await renew(ledger, "2"))["fence"] > fence
    assert [facts["reason"] for kind, facts in events(ledger) if kind == "lock.lost"] == ["it hangs"]


async def test_what_an_agent_or_one_of_its_tasks_has_is_released_together(ledger: Ledger) -> None:
    await acquire(ledger, "1", "x", task="t1")
    await acquire(ledger, "2", "y", task="t2")
    await acquire(ledger, "3", "x", "y", agent="b")

    of_task = await ledger.ask(Verb.LOCK_RELEASE, {"agent": "a", "task": "t1", "reason": "it ended"})
    first = await states(ledger, "1", "2", "3")
    of_agent = await ledger.ask(Verb.LOCK_RELEASE, {"agent": "a", "reason": "it died"})

    assert (of_task["released"], of_agent["released"]) == (1, 1)
    assert first == {"1": "gone", "2": "held", "3": "waiting"}
    assert await states(ledger, "3") == {"3": "held"}


async def test_locks_are_listed_in_order_of_resource_and_arrival_by_the_page(ledger: Ledger) -> None:
    await acquire(ledger, "1", "x", "y")
    await acquire(ledger, "2", "x", mode="shared")

    pages = [
        [(row["resource"], row["ticket"], row["state"]) for row in page["locks"]]
        for page in await ledger.pages(list_locks, limit=2)
    ]
    of_one = await ledger.read(list_locks, resource="y")

    assert pages == [[("x", "1", "held"), ("x", "2", "waiting")], [("y", "1", "held")]]
    assert [one["ticket"] for one in of_one["locks"]] == ["1"]


async def test_nothing_is_left_of_locks_that_are_gone(ledger: Ledger) -> None:
    await acquire(ledger, "1", "x", "y")
    await acquire(ledger, "2", "y")
    await release(ledger, "1")
    await release(ledger, "2")

    for space in (LOCKS, LOCK_QUEUES, LOCK_OWNERS, TIMERS, DUE):
        assert await ledger.rows(space) == []


async def test_a_lock_is_free_for_a_request_that_names_it_as_released(ledger: Ledger) -> None:
    await acquire(ledger, "1", owner="me")
    stranger = await acquire(ledger, "2", owner="me", agent="b", released=["1"], wait=False)

    again = await acquire(ledger, "3", owner="me", released=["1", "unknown"])

    assert (stranger["state"], again["state"]) == ("taken", "held")
    assert not await release(ledger, "1")


async def test_at_most_so_many_hold_a_counted_lock_and_the_others_follow_in_order_of_arrival(ledger: Ledger) -> None:
    first = [(await acquire(ledger, str(number), mode="at_most:2"))["state"] for number in range(6)]
    await release(ledger, "3")  # a waiter that goes makes room for nobody
    waiting = await states(ledger, "0", "1", "2", "4", "5")
    await release(ledger, "1")
    after_one = await states(ledger, "0", "2", "4", "5")
    await release(ledger, "0")
    await release(ledger, "2")

    assert first == ["held", "held", "waiting", "waiting", "waiting", "waiting"]
    assert waiting == {"0": "held", "1": "held", "2": "waiting", "4": "waiting", "5": "waiting"}
    assert after_one == {"0": "held", "2": "held", "4": "waiting", "5": "waiting"}
    assert await states(ledger, "4", "5") == {"4": "held", "5": "held"}
    assert told(ledger) == {"2": "held", "4": "held", "5": "held"}


async def test_an_exclusive_lock_and_a_counted_one_bar_each_other(ledger: Ledger) -> None:
    await acquire(ledger, "1", mode="at_most:3")
    exclusive = await acquire(ledger, "2")
    counted = await acquire(ledger, "3", mode="at_most:3")

    assert (exclusive["state"], counted["state"]) == ("waiting", "waiting")
    await release(ledger, "1")
    assert await states(ledger, "2", "3") == {"2": "held", "3": "waiting"}
    await release(ledger, "2")
    assert await states(ledger, "3") == {"3": "held"}


async def test_holders_are_named_once_each_and_a_few_at_once(ledger: Ledger) -> None:
    for agent in ("b", "a", "c", "a-1", "a"):
        await acquire(ledger, f"{agent}-{ledger.now_ms}", mode="shared", agent=agent)
        ledger.now_ms += 1

    pages, after = list[list[str]](), ""
    while found := await ledger.database.read(partial(holders, after=after, limit=2)):
        pages.append(found)
        after = found[-1]

    assert pages == [["a", "a-1"], ["b", "c"]]


async def _released(ledger: Ledger) -> None:
    await release(ledger, "1")


async def _named_as_released(ledger: Ledger) -> None:
    await acquire(ledger, "other", "y", owner="me", released=["1"])


async def _expired(ledger: Ledger) -> None:
    await ledger.pass_time(TTL_MS / 1000)


async def _released_by_force(ledger: Ledger) -> None:
    await ledger.ask(Verb.LOCK_RELEASE, {"resource": "repo:x", "reason": "it hangs"})


async def _evicted(ledger: Ledger) -> None:
    await ledger.ask(Verb.LOCK_RELEASE, {"agent": "a", "reason": "its agent is gone"})


@pytest.mark.parametrize("end", [_released, _named_as_released, _expired, _released_by_force, _evicted])
@pytest.mark.parametrize("later_seconds", [0.0, 60.0, 500.0])
async def test_an_acquire_that_arrives_again_after_the_end_of_its_ticket_locks_nothing(
    ledger: Ledger, end: Callable[[Ledger], Awaitable[None]], later_seconds: float
) -> None:
    await acquire(ledger, "1", owner="me")
    await end(ledger)
    await ledger.pass_time(later_seconds)
    again = await acquire(ledger, "1", owner="me")
    following = await acquire(ledger, "2", owner="me")

    assert (again, following["state"]) == ({"state": "gone"}, "held")


@pytest.mark.parametrize("end", [_released, _named_as_released])
async def test_an_acquire_after_its_release_locks_nothing(
    ledger: Ledger, end: Callable[[Ledger], Awaitable[None]]
) -> None:
    await end(ledger)
    late = await acquire(ledger, "1")

    assert (late["state"], (await acquire(ledger, "2"))["state"]) == ("gone", "held")


async def test_a_waiting_ticket_that_was_given_up_does_not_wait_again(ledger: Ledger) -> None:
    await acquire(ledger, "1")
    await acquire(ledger, "2")
    await release(ledger, "2")

    assert (await acquire(ledger, "2"))["state"] == "gone"
    await release(ledger, "1")

    assert told(ledger) == {}
    assert (await acquire(ledger, "3"))["state"] == "held"


async def test_a_refused_ticket_is_refused_again_although_the_lock_is_free_by_then(ledger: Ledger) -> None:
    await acquire(ledger, "1", "x", owner="me")
    await acquire(ledger, "2", "y", owner="you")
    await acquire(ledger, "1y", "y", owner="me")
    taken = await acquire(ledger, "3", "x", wait=False)
    deadlock = await acquire(ledger, "2x", "x", owner="you")
    for ticket in ("1", "1y", "2"):
        await release(ledger, ticket)

    assert await acquire(ledger, "3", "x", wait=False) == {"state": "taken"} == {"state": taken["state"]}
    assert await acquire(ledger, "2x", "x", owner="you") == deadlock
    assert deadlock["state"] == "deadlock"
    assert not (await ledger.read(list_locks))["locks"]


async def test_the_end_of_a_ticket_is_removed_some_minutes_later(ledger: Ledger) -> None:
    await acquire(ledger, "1")
    await release(ledger, "1")

    now_ms = ledger.now_ms + answers.ENDED_TICKET_MS
    before = await ledger.database.run(partial(answers.sweep, now_ms=now_ms - 1))
    after = await ledger.database.run(partial(answers.sweep, now_ms=now_ms))

    assert (before, after) == (0, 1)
