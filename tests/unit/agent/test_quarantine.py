"""Who is a suspect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.agent import quarantine
from coditect.agent.execution import Suspicion
from coditect.agent.quarantine import (
    MANY_DELIVERIES,
    Quarantine,
    earlier_deliveries,
    mark_of,
    suspicion,
)
from coditect.aio.supervisor import Supervisor
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.registration import AgentStatus
from coditect.model.task import Task
from coditect.registry.memory import MemoryRegistry
from tests.support import eventually
from tests.unit.registry.samples import IDLE, make_registration

ME, OTHER = AgentId("me-1"), AgentId("other-1")
TASK = Task("a.b", Priority.P1, b"1", id=TaskId("task-1"))
DIED = ({"attempt": 1, "reason": "process_died"},)
FAILED: tuple[Any, ...] = ({"attempt": 1, "reason": "handler_error"}, "foreign", 7, {})


@dataclass(slots=True)
class Delivered:
    """As much of a delivery as matters here."""

    delivery_count: int = 0
    redelivered: bool = False
    headers: dict[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        return Message(b"1", headers=self.headers)


@pytest.mark.parametrize(
    ("errors", "deliveries", "recorded", "expected"),
    [
        ((), 0, False, Suspicion.NONE),
        ((), 1, False, Suspicion.NONE),
        ((), 999, False, Suspicion.NONE),
        ((), 1, True, Suspicion.RECORDED),
        ((), MANY_DELIVERIES - 1, None, Suspicion.NONE),
        ((), MANY_DELIVERIES, None, Suspicion.COUNTED),
        ((), MANY_DELIVERIES, True, Suspicion.RECORDED),
        (DIED, 0, False, Suspicion.RECORDED),
        ((*DIED, *FAILED), 0, None, Suspicion.RECORDED),
        (FAILED, 0, False, Suspicion.NONE),
    ],
)
def test_rule(errors: tuple[Any, ...], deliveries: int, recorded: bool | None, expected: Suspicion) -> None:
    assert suspicion(replace(TASK, errors=errors), deliveries, recorded) is expected


@pytest.mark.parametrize(
    ("delivered", "expected"),
    [
        (Delivered(), 0),
        (Delivered(delivery_count=1), 1),
        (Delivered(delivery_count=3, redelivered=True), 3),
        (Delivered(redelivered=True), 1),
        (Delivered(headers={"x-first-death-queue": "agent.me-1.tasks"}), 1),
        (Delivered(2, redelivered=True, headers={"x-first-death-queue": "agent.me-1.tasks"}), 3),
        (Delivered(headers={"x-first-death-queue": "retry.100"}), 0),
        (Delivered(headers={"x-first-death-queue": 7}), 0),
    ],
)
def test_first_delivery_is_told_from_others(delivered: Delivered, expected: int) -> None:
    assert earlier_deliveries(delivered) == expected  # type: ignore[arg-type]  # the rest of it does not matter


texts = st.text(max_size=5)
tasks = st.builds(
    Task,
    texts,
    st.sampled_from(Priority),
    st.binary(max_size=3),
    id=st.none() | texts.map(TaskId),
    correlation_id=st.none() | texts,
    attempt=st.integers(1, 3),
    redrive=st.integers(0, 2),
)


@given(tasks, tasks)
def test_mark_is_that_of_one_execution(one: Task, other: Task) -> None:
    assert mark_of(one) == mark_of(replace(one, depth=5, errors=({"type": "E"},)))
    if one.id is not None and one.execution_key != other.execution_key:
        assert mark_of(one) != mark_of(other)


def test_marks_of_tasks_without_id_follow_their_content() -> None:
    foreign = replace(TASK, id=None)

    assert mark_of(foreign) == mark_of(replace(foreign))
    assert len({mark_of(foreign), mark_of(replace(foreign, body=b"2")), mark_of(replace(foreign, attempt=2))}) == 3


class Stage:
    """One agent's suspects over a registry that others use, too."""

    def __init__(self, background: Supervisor) -> None:
        self.background = background
        self.registry = MemoryRegistry()
        self.quarantine = Quarantine(self.registry, ME, background, patience_seconds=0.3)
        self.waits = 0

    async def aside(self, work: Any) -> bool:
        self.waits += 1
        return bool(await work)

    def examined(self, delivered: Delivered, **how: Any) -> AbstractAsyncContextManager[Suspicion]:
        how = {"aside": self.aside} | how
        return self.quarantine.examined(TASK, delivered, **how)  # type: ignore[arg-type]

    async def examine(self, delivered: Delivered | None = None) -> Suspicion:
        async with self.examined(delivered or Delivered(1)) as found:
            return found

    async def marked_by_other(self) -> None:
        assert await self.registry.mark_start(mark_of(TASK), OTHER, keep_seconds=60) is None

    async def holder(self) -> AgentId | None:
        return await self.registry.mark_start(mark_of(TASK), AgentId("looks"), keep_seconds=0.0)

    async def unmarked(self) -> bool:
        return await self.holder() is None

    async def beat(self) -> None:
        await self.registry.register(make_registration(OTHER), IDLE, lease_seconds=30)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Supervisor() as background:
        yield Stage(background)


async def test_start_is_recorded_inside_and_forgotten_behind(stage: Stage) -> None:
    async with stage.examined(Delivered(1)) as found:
        assert (found, await stage.holder()) == (Suspicion.NONE, ME)

    await eventually(stage.unmarked)
    assert stage.waits == 0


async def test_first_delivery_asks_nobody(stage: Stage) -> None:
    stage.registry.failing = True

    assert await stage.examine(Delivered(0)) is Suspicion.NONE
    assert not stage.quarantine.concerns(TASK, Delivered(0))  # type: ignore[arg-type]
    assert stage.quarantine.concerns(replace(TASK, errors=DIED), Delivered(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(("hand_backs", "holder"), [(2, None), (1, ME)])
async def test_delivery_without_a_hand_back_is_marked(stage: Stage, hand_backs: int, holder: AgentId | None) -> None:
    for _ in range(hand_backs):
        await stage.quarantine.hand_back([TASK])

    async with stage.examined(Delivered(2)) as found:
        assert (found, await stage.holder()) == (Suspicion.NONE, holder)


async def test_mark_of_a_gone_agent_is_found_whatever_was_handed_back_after_it(stage: Stage) -> None:
    await stage.marked_by_other()
    await stage.quarantine.hand_back([TASK])

    assert await stage.examine(Delivered(1)) is Suspicion.RECORDED


@given(
    earlier=st.lists(
        st.sampled_from(
            ["goes back", "its agent dies as it goes back", "its agent dies beside it", "it kills its agent"]
        ),
        max_size=8,
    )
)
def test_a_task_kills_two_agents_at_most_whatever_became_of_its_deliveries(earlier: list[str]) -> None:
    async def kills() -> int:
        killed, registry = list[Any](), MemoryRegistry()
        async with Supervisor() as background:
            for deliveries, event in enumerate([*earlier, *["it kills its agent"] * 3]):
                agent = Quarantine(registry, AgentId(f"agent-{deliveries}"), background, patience_seconds=0.0)
                if event.endswith("goes back"):
                    await agent.hand_back([TASK])
                elif event == "it kills its agent":
                    start = agent.examined(TASK, Delivered(deliveries), alone)  # type: ignore[arg-type]
                    if await start.__aenter__() is not Suspicion.NONE:
                        break
                    killed.append(start)  # which nobody leaves
        return len(killed)

    assert asyncio.run(kills()) <= 2


async def alone(work: Any) -> bool:
    return bool(await work)


async def test_registry_that_hangs_delays_a_hand_back_by_a_moment(stage: Stage) -> None:
    stage.registry.slow_seconds = 60
    began = asyncio.get_running_loop().time()

    await stage.quarantine.hand_back([TASK])

    assert asyncio.get_running_loop().time() - began < stage.registry.slow_seconds / 4


async def test_task_handed_back_leaves_no_mark(stage: Stage) -> None:
    with pytest.raises(KeyError):
        async with stage.examined(Delivered(1)):
            raise KeyError

    assert await stage.holder() is None


async def test_mark_of_a_gone_agent_makes_a_suspect_until_it_is_settled(stage: Stage) -> None:
    await stage.marked_by_other()

    with pytest.raises(KeyError):
        async with stage.examined(Delivered(2)) as found:
            raise KeyError
    assert (found, await stage.holder()) == (Suspicion.RECORDED, OTHER)

    assert await stage.examine(Delivered(3)) is Suspicion.RECORDED
    await eventually(stage.unmarked)


async def test_lease_that_is_not_renewed_belongs_to_a_gone_agent(stage: Stage) -> None:
    await stage.marked_by_other()
    await stage.beat()

    assert await stage.examine() is Suspicion.RECORDED
    assert stage.waits == 1


async def test_mark_of_a_living_agent_is_taken_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "LEASE_CHECK_SECONDS", 0.02)
    await stage.marked_by_other()
    await stage.beat()

    async def beats() -> None:
        while True:
            await asyncio.sleep(0.05)
            await stage.beat()

    stage.background.start(beats(), name="beats")
    async with stage.examined(Delivered(1)) as found:
        assert (found, await stage.holder()) == (Suspicion.NONE, ME)
    await eventually(stage.unmarked)


async def test_mark_that_is_cleared_while_its_agent_leaves_makes_no_suspect(stage: Stage) -> None:
    await stage.marked_by_other()
    await stage.beat()

    async def leaves(work: Any) -> bool:
        await stage.registry.clear_start(mark_of(TASK), OTHER)
        await stage.registry.deregister(OTHER)
        return bool(await work)

    async with stage.examined(Delivered(1), aside=leaves) as found:
        assert (found, await stage.holder()) == (Suspicion.NONE, ME)


async def test_registry_that_fails_leaves_the_count_and_is_not_asked_for_a_while(stage: Stage) -> None:
    await stage.marked_by_other()
    stage.registry.failing = True

    assert await stage.examine(Delivered(MANY_DELIVERIES - 1)) is Suspicion.NONE
    stage.registry.failing = False
    assert await stage.examine(Delivered(2)) is Suspicion.NONE, "it was not asked"
    assert await stage.examine(Delivered(MANY_DELIVERIES)) is Suspicion.COUNTED


async def test_mark_that_cannot_be_cleared_is_left_to_lapse(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with stage.examined(Delivered(1)):
        stage.registry.failing = True

    await eventually(lambda: "The mark of a start stays until it lapses" in caplog.text)
    stage.registry.failing = False
    assert await stage.holder() == ME
    assert await stage.examine() is Suspicion.NONE, "one's own mark says nothing against a task"


@pytest.mark.parametrize(("began", "deliveries"), [(False, 2), (True, 1), (True, 2)])
async def test_task_that_ends_of_agents_break_off_keeps_its_mark_at_last(
    stage: Stage, began: bool, deliveries: int
) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with stage.examined(Delivered(deliveries), began=lambda: began):
            raise asyncio.CancelledError

    assert await stage.holder() == (ME if began and deliveries > 1 else None)


def test_task_that_failed_in_a_process_of_its_own_runs_there_again() -> None:
    failed = {"type": "CancelledError", "reason": "handler_error"}
    once, apart = replace(TASK, errors=(failed,)), replace(TASK, errors=(failed | {"isolated": True},))

    assert suspicion(once, 0, False) is Suspicion.NONE
    assert suspicion(apart, 0, False) is Suspicion.RECORDED


async def test_agent_that_drains_and_renews_its_lease_counts_as_gone(stage: Stage) -> None:
    await stage.marked_by_other()
    draining = replace(IDLE, status=AgentStatus.DRAINING)
    await stage.registry.register(make_registration(OTHER), draining, lease_seconds=30)

    examining = asyncio.create_task(stage.examine(Delivered(3)))
    for beats in count(1):
        if examining.done():
            break
        await stage.registry.register(make_registration(OTHER), draining, lease_seconds=30 + beats)
        await asyncio.sleep(0.01)

    assert await examining is Suspicion.RECORDED
