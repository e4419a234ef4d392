"""What every registry promises, run against each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
from redis.asyncio import Redis

from coditect.errors import InvalidTask
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.limits import Rate
from coditect.model.registration import AgentRecord, AgentStatus, Load
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import LAPSED, LEFT, Registry, Search
from coditect.registry.redis import RedisRegistry
from tests.integration.registry.private_redis import run_private_redis
from tests.support import eventually
from tests.unit.registry.samples import IDLE, REVIEW, SUMMARY, make_registration

A = AgentId("reviewer-0000000a")
B = AgentId("writer-0000000b")
C = AgentId("tester-0000000c")
UNKNOWN = AgentId("nobody-00000000")


async def register(registry: Registry, agent_id: str = A, *, lease_seconds: float = 30, load: Load = IDLE) -> None:
    await registry.register(make_registration(agent_id), load, lease_seconds=lease_seconds)


def ids(records: tuple[AgentRecord, ...]) -> list[str]:
    return [record.agent_id for record in records]


async def test_registered_agent_is_read_back_as_it_was_written(registry: Registry) -> None:
    registration = make_registration(offers=(REVIEW, SUMMARY))
    load = Load(AgentStatus.BUSY, 3, 1, 12.5, 70_000_000, 33.125, 40, 2, awaiting_owner=1, trouble="no files left")

    await registry.register(registration, load, lease_seconds=30)

    record = await registry.get(A)
    assert record is not None
    assert record.registration == registration
    assert record.load == load
    assert 29_000 < record.lease_ms <= 30_000
    assert record.free_slots == 1


async def test_registry_tells_its_wall_time(registry: Registry) -> None:
    before = time.time_ns() // 1_000_000
    told = await registry.now_ms()

    assert before - 1_000 <= told <= time.time_ns() // 1_000_000 + 1_000


async def test_leases_are_those_of_the_living_and_what_is_left_of_them(registry: Registry) -> None:
    await register(registry, A, lease_seconds=30)
    await register(registry, B, lease_seconds=0.05)
    both = await registry.leases()

    async def one_is_left() -> bool:
        return set(await registry.leases()) == {A}

    await eventually(one_is_left)
    left = await registry.leases()

    assert set(both) >= {A}
    assert 25_000 < left[A] <= 30_000


async def test_empty_registry_answers_empty_and_an_agent_without_capabilities_and_tags_is_found(
    registry: Registry,
) -> None:
    assert await registry.find(Search()) == ()
    assert await registry.capabilities() == frozenset()
    assert await registry.get(A) is None
    assert not await registry.renew(UNKNOWN, IDLE, lease_seconds=30)
    assert await registry.find(Search()) == (), "a renewal writes nothing"

    await registry.register(make_registration(offers=(), tags=frozenset()), IDLE, lease_seconds=30)

    assert ids(await registry.find(Search())) == [A]
    assert await registry.renew(A, IDLE, lease_seconds=30)


async def test_empty_search_finds_all_in_order_of_their_ids(registry: Registry) -> None:
    for agent_id in ("c-1", "a-1", "b-2", "b-10"):
        await register(registry, agent_id)

    found = await registry.find(Search())

    assert ids(found) == ["a-1", "b-10", "b-2", "c-1"]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (Search(capability="code.review"), [A]),
        (Search(capability="text.summarize"), [B]),
        (Search(capability="code"), []),
        (Search(capability=""), []),
        (Search(tag="fast"), [A]),
        (Search(tag="lint"), [A]),
        (Search(tag="text"), [B]),
        (Search(tag="fas"), []),
        (Search(keyword="MISTAKES in"), [A]),
        (Search(keyword="review"), [A]),
        (Search(keyword="WRITER"), [B]),
        (Search(keyword="python"), [A]),
        (Search(keyword="kürzt"), [B]),
        (Search(keyword="e"), [A, B]),
        (Search(keyword="absent"), []),
        (Search(status=AgentStatus.DRAINING), [B]),
        (Search(capability="code.review", tag="fast", keyword="find", status=AgentStatus.IDLE), [A]),
        (Search(capability="code.review", tag="text"), []),
        (Search(capability="code.review", status=AgentStatus.DRAINING), []),
    ],
    ids=str,
)
async def test_search_finds_agents_that_match_every_field(
    registry: Registry, search: Search, expected: list[str]
) -> None:
    await register(registry)
    writer = make_registration(B, offers=(SUMMARY,), tags=frozenset({"slow"}))
    await registry.register(writer, Load(status=AgentStatus.DRAINING), lease_seconds=30)

    found = await registry.find(search)

    assert ids(found) == expected


async def test_capabilities_are_those_of_the_living_each_once(registry: Registry) -> None:
    await register(registry)
    await registry.register(make_registration(B, offers=(REVIEW, SUMMARY)), IDLE, lease_seconds=30)

    assert await registry.capabilities() == {"code.review", "text.summarize"}


async def test_second_registration_replaces_the_first_with_its_indexes(registry: Registry) -> None:
    await register(registry)

    await registry.register(make_registration(offers=(SUMMARY,), tags=frozenset()), IDLE, lease_seconds=30)

    assert await registry.find(Search(capability="code.review")) == ()
    assert await registry.find(Search(tag="fast")) == ()
    assert ids(await registry.find(Search(capability="text.summarize"))) == [A]
    assert await registry.capabilities() == {"text.summarize"}


async def test_lapsed_agent_is_gone_from_every_answer(registry: Registry) -> None:
    await register(registry, A, lease_seconds=0.1)
    await registry.register(make_registration(B, offers=(SUMMARY,)), IDLE, lease_seconds=30)

    async def lapsed() -> bool:
        return await registry.get(A) is None

    await eventually(lapsed)

    assert ids(await registry.find(Search())) == [B]
    assert await registry.find(Search(capability="code.review")) == ()
    assert ids(await registry.find(Search(tag="fast"))) == [B]
    assert await registry.capabilities() == {"text.summarize"}
    assert not await registry.renew(A, IDLE, lease_seconds=30)
    assert await registry.get(A) is None


async def test_renewal_extends_or_shortens_the_lease_and_replaces_the_load(registry: Registry) -> None:
    await register(registry, lease_seconds=5)
    load = replace(IDLE, status=AgentStatus.BUSY, running=2, completed=9)

    renewed = await registry.renew(A, load, lease_seconds=60)

    record = await registry.get(A)
    assert renewed
    assert record is not None
    assert record.lease_ms > 5_000
    assert record.load == load
    assert record.registration == make_registration(A)

    await registry.renew(A, IDLE, lease_seconds=2)
    shortened = await registry.get(A)
    assert shortened is not None
    assert shortened.lease_ms <= 2_000


async def test_deregistered_agent_is_gone_until_it_comes_back_and_others_stay(registry: Registry) -> None:
    await register(registry, A)
    await register(registry, B)

    await registry.deregister(A)
    await registry.deregister(A)
    await registry.deregister(UNKNOWN)

    assert ids(await registry.find(Search(capability="code.review"))) == [B]
    assert ids(await registry.find(Search(tag="fast"))) == [B]
    assert not await registry.renew(A, IDLE, lease_seconds=30)

    await register(registry)
    await registry.deregister(A)

    await register(registry)

    assert await registry.gone() == ()
    assert await registry.gone(A) == ()


async def test_agent_that_went_away_is_kept_with_its_last_heartbeat_and_the_reason(registry: Registry) -> None:
    before = await registry.now_ms()
    await register(registry, A, lease_seconds=0.1, load=replace(IDLE, completed=7))
    await register(registry, B)
    await registry.deregister(B)
    await registry.deregister(UNKNOWN)

    async def lapsed() -> bool:
        return len(await registry.gone()) == 2

    await eventually(lapsed)
    left, (one,) = await registry.gone(), await registry.gone(B)

    assert ids(left) == [A, B]
    assert [record.load.trouble for record in left] == [LAPSED, LEFT]
    assert [record.load.status for record in left] == [AgentStatus.OFFLINE] * 2
    assert left[0].registration == make_registration(A)
    assert (left[0].load.completed, left[0].lease_ms) == (7, 0)
    assert before <= left[0].load.beat_ms <= await registry.now_ms()
    assert one == left[1]
    assert await registry.gone(UNKNOWN) == ()


async def test_turns_grow_by_one_per_name_also_at_once(registry: Registry) -> None:
    first = await registry.next_turn("code.review")

    second = await registry.next_turn("code.review")
    other = await registry.next_turn("text.summarize")

    assert (second, other) == (first + 1, first)

    turns = await asyncio.gather(*(registry.next_turn("code.review") for _ in range(100)))

    assert sorted(turns) == list(range(min(turns), min(turns) + 100))


async def test_concurrent_registrations_all_arrive(registry: Registry) -> None:
    await asyncio.gather(*(register(registry, f"agent-{number:08x}") for number in range(200)))

    assert len(await registry.find(Search(capability="code.review"))) == 200


ODD_TEXTS = ["", "*", "[a-z]", "a\0b", "a:b", "{x}", "ü 要", "'\"\\", "\x01", "\xff", "\r\n"]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=repr)
async def test_any_text_may_be_a_tag_and_is_gone_with_its_agent(registry: Registry, text: str) -> None:
    others = frozenset({text + "x", "x" + text, text + "\0"})
    await registry.register(make_registration(A, tags=frozenset({text})), IDLE, lease_seconds=30)
    await registry.register(make_registration(B, tags=others), IDLE, lease_seconds=30)
    assert ids(await registry.find(Search(tag=text))) == [A]

    await registry.deregister(A)
    assert await registry.find(Search(tag=text)) == ()


async def test_what_json_or_utf8_cannot_say_is_refused_or_finds_nobody(registry: Registry) -> None:
    offer = CapabilitySpec(name="code.review", input_schema={"default": object()})

    with pytest.raises(InvalidTask):
        await registry.register(make_registration(offers=(offer,)), IDLE, lease_seconds=30)

    assert await registry.find(Search()) == ()

    await register(registry)

    assert await registry.find(Search(tag="\udcff")) == ()
    assert await registry.get(AgentId("\udcff")) is None


async def mark(registry: Registry, agent_id: AgentId, task: str = "task-1", *, keep: float = 60) -> AgentId | None:
    return await registry.mark_start(task, agent_id, keep_seconds=keep)


async def test_first_mark_is_noted_shown_to_the_next_and_makes_nobody_an_agent(registry: Registry) -> None:
    assert await mark(registry, A) is None

    assert await mark(registry, B) == A
    assert await mark(registry, B) == A, "asking did not change it"
    assert await mark(registry, A) is None, "an agent's own mark is no other's"

    await mark(registry, A)

    assert await registry.get(A) is None
    assert await registry.find(Search()) == ()


async def test_mark_is_cleared_by_its_own_agent_alone(registry: Registry) -> None:
    await mark(registry, A)

    await registry.clear_start("task-1", B)
    assert await mark(registry, B) == A

    for _ in range(2):
        await registry.clear_start("task-1", A)
    assert await mark(registry, B) is None


async def test_mark_is_replaced_only_for_the_agent_that_was_named(registry: Registry) -> None:
    await mark(registry, A)

    assert await registry.mark_start("task-1", B, keep_seconds=60, instead_of=C) == A
    assert await registry.mark_start("task-1", B, keep_seconds=60, instead_of=A) is None
    assert await mark(registry, A) == B


@pytest.mark.parametrize(("times", "deliveries", "noted"), [(0, 1, True), (1, 1, False), (1, 2, True), (3, 2, False)])
async def test_start_of_a_task_that_was_handed_back_each_time_is_not_noted(
    registry: Registry, times: int, deliveries: int, noted: bool
) -> None:
    for _ in range(times):
        await registry.hand_back(["task-1", "task-2"], A, keep_seconds=60)

    assert await registry.mark_start("task-1", A, keep_seconds=60, deliveries=deliveries) is None

    assert await mark(registry, B, "task-1") == (A if noted else None)
    assert await mark(registry, B, "task-2") is None, "without a number of deliveries it is always noted"
    assert await mark(registry, A, "task-2") == B


async def test_what_is_handed_back_loses_the_agent_s_own_mark_only(registry: Registry) -> None:
    await mark(registry, A, "mine")
    await mark(registry, B, "another's")

    await registry.hand_back(["mine", "another's"], A, keep_seconds=60)

    assert await mark(registry, C, "mine") is None
    assert await mark(registry, C, "another's") == B


async def test_settled_task_was_never_handed_back(registry: Registry) -> None:
    await registry.hand_back(["task-1"], A, keep_seconds=60)
    await registry.clear_start("task-1", A)

    await registry.mark_start("task-1", A, keep_seconds=60, deliveries=1)

    assert await mark(registry, B) == A


async def test_count_of_hand_backs_lapses(registry: Registry) -> None:
    await registry.hand_back(["task-1"], A, keep_seconds=0.05)

    async def noted() -> bool:
        await registry.mark_start("task-1", A, keep_seconds=60, deliveries=1)
        return await registry.mark_start("task-1", B, keep_seconds=60, deliveries=0) == A  # a look, no mark

    await eventually(noted)


async def test_mark_lapses_unless_it_is_made_again(registry: Registry) -> None:
    await mark(registry, A, keep=0.05)

    async def free() -> bool:
        return await mark(registry, B) is None

    await eventually(free)
    assert await mark(registry, A) == B

    await mark(registry, A, "short", keep=0.05)
    await mark(registry, A, "long", keep=0.05)
    await mark(registry, A, "long", keep=60)

    async def lapsed() -> bool:
        return await mark(registry, B, "short") is None

    await eventually(lapsed)
    assert await mark(registry, B, "long") == A


async def test_one_of_many_who_mark_at_once_gets_it(registry: Registry) -> None:
    agents = [AgentId(f"agent-{number:08x}") for number in range(20)]

    holders = await asyncio.gather(*(mark(registry, agent_id) for agent_id in agents))

    winner = agents[holders.index(None)]
    assert [one for one in holders if one is not None] == [winner] * 19


@pytest.mark.parametrize("task", ["", "a b", "ü 要", "\0\xff", "{x}:*", "\udcff", "x" * 255], ids=repr)
async def test_any_text_may_name_a_task(registry: Registry, task: str) -> None:
    assert await mark(registry, A, task) is None
    assert await mark(registry, B, task + "x") is None

    assert await mark(registry, C, task) == A
    await registry.clear_start(task, A)
    assert await mark(registry, C, task) is None


SLOW = Rate("6/h", burst=4)


async def test_a_full_bucket_gives_its_burst_once_then_says_when_the_next_token_comes_and_is_no_other_s(
    registry: Registry,
) -> None:
    assert (await registry.lease_tokens("page.fetch", SLOW, 3)).tokens == 3

    rest = await registry.lease_tokens("page.fetch", SLOW, 3)
    none = await registry.lease_tokens("page.fetch", SLOW, 3)

    assert (rest.tokens, none.tokens) == (1, 0)
    assert 590 < none.wait_seconds <= 600

    other = await registry.lease_tokens("page.index", SLOW, 1)
    assert other.tokens == 1


async def test_tokens_come_back_at_the_rate_and_never_faster(registry: Registry) -> None:
    rate, began, got = Rate("100/s", burst=10), monotonic(), 0
    while monotonic() - began < 0.5:
        got += (await registry.lease_tokens("page.fetch", rate, 5)).tokens
        await asyncio.sleep(0.002)

    assert 30 <= got <= rate.capacity + 100 * (monotonic() - began)


async def test_the_next_token_is_there_after_the_wait(registry: Registry) -> None:
    rate = Rate("20/s", burst=1)
    first = await registry.lease_tokens("page.fetch", rate, 1)
    assert (first.tokens, 0 < first.wait_seconds <= 0.05) == (1, True)

    async def leased() -> bool:
        return (await registry.lease_tokens("page.fetch", rate, 1)).tokens == 1

    await eventually(leased)


async def test_the_slowest_rate_that_was_asked_by_holds_for_all(registry: Registry) -> None:
    fast, slow = Rate("1000/s", burst=1000), Rate("1/h", burst=1)
    await registry.lease_tokens("page.fetch", slow, 1)

    held = await registry.lease_tokens("page.fetch", fast, 100)

    assert held.tokens == 0
    assert held.wait_seconds > 3000
    assert held.hold_seconds == slow.hold_seconds


Wipe = Callable[[], Awaitable[object]]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
async def wipeable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Registry, Wipe]]:
    if request.param == "memory":
        memory = MemoryRegistry()

        async def wipe() -> None:
            memory.wipe()

        yield memory, wipe
        return
    with run_private_redis(tmp_path) as server:
        async with RedisRegistry(server.url) as registry, Redis.from_url(server.url) as client:

            async def flush() -> None:
                await client.flushall()
                await client.script_flush()

            yield registry, flush


async def test_wiped_registry_is_empty_and_takes_registrations_again(wipeable: tuple[Registry, Wipe]) -> None:
    registry, wipe = wipeable
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    await registry.mark_start("task-1", A, keep_seconds=60)

    await wipe()

    assert not await registry.renew(A, IDLE, lease_seconds=30)
    assert await registry.find(Search()) == ()
    assert await registry.capabilities() == frozenset()
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    assert await registry.renew(A, IDLE, lease_seconds=30)
    assert len(await registry.find(Search(capability="code.review"))) == 1
    assert await registry.next_turn("code.review") == 1
    assert await registry.mark_start("task-1", B, keep_seconds=60) is None
