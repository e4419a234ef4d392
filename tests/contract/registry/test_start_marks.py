"""Which agent started a redelivered task: what every registry promises about the marks."""

from __future__ import annotations

import asyncio

import pytest

from coditect.model.ids import AgentId
from coditect.registry.port import Registry, Search
from tests.support import eventually

A = AgentId("reviewer-0000000a")
B = AgentId("writer-0000000b")
C = AgentId("tester-0000000c")


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
