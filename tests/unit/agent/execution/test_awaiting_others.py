"""A task that awaits others: the wait is none of its time, and what it asked for ends with it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from coditect import Agent, Context, Priority, Retry, TaskFailed
from coditect.model.result import Status
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from tests.unit.agent.scene import failure_of

TIMEOUT = 10.0
MOMENT = 0.1


@dataclass
class Script:
    """What a parent does, step by step: it works so long, and beside that awaits children that take so long."""

    worked: float = 0.0
    """How long it worked while it awaited nobody."""

    async def play(self, steps: list[tuple[float, list[float]]], ctx: Context) -> None:
        for work, children in steps:
            async with asyncio.TaskGroup() as group:
                for seconds in children:
                    group.create_task(ctx.request("child.sleep", seconds, timeout="24h"))
                await asyncio.sleep(min(work, max(children, default=0.0)))
            await self._work(work - max(children, default=0.0))

    async def _work(self, seconds: float) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(max(0.0, seconds))
        finally:
            self.worked += asyncio.get_running_loop().time() - began

    def agent(self, *, slots: int = 1, timeout: float = TIMEOUT) -> Agent:
        agent = Agent("parents", slots=slots)

        @agent.capability("parent.run", timeout=timeout, retry=Retry(max_attempts=1))
        async def run(steps: list[tuple[float, list[float]]], ctx: Context) -> None:
            await self.play(steps, ctx)

        @agent.capability("slot.hold", timeout="5m", retry=Retry(max_attempts=1))
        async def hold(seconds: float) -> None:
            await asyncio.sleep(seconds)

        return agent


def children() -> Agent:
    agent = Agent("children", slots=100)

    @agent.capability("child.sleep", timeout="10m")
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    return agent


async def test_deadline_counts_on_while_a_task_waits() -> None:
    script = Script()
    async with TestFleet(agents=[script.agent(), children()]) as fleet:
        failure = await failure_of(await fleet.submit("parent.run", [(0.0, [60.0])], deadline="20s"), "5m")

        assert fleet.elapsed_seconds == pytest.approx(20, abs=MOMENT)
    assert failure.reason == "timeout"


async def test_timeout_that_a_workflow_gives_counts_by_the_clock_as_the_control_plane_does() -> None:
    script = Script()
    async with TestFleet(agents=[script.agent(timeout=60.0), children()]) as fleet:
        kept = await fleet.submit("parent.run", [(0.0, [30.0])], durable=True, timeout="20s")
        free = await fleet.submit("parent.run", [(0.0, [400.0])], durable=True)

        await failure_of(kept, "5m")
        assert fleet.elapsed_seconds == pytest.approx(20, abs=1)
        await free.result(timeout="2h")


SECONDS = st.floats(0.01, 8.0).map(lambda value: round(value, 2))


@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    steps=st.lists(st.tuples(SECONDS, st.lists(st.one_of(SECONDS, st.just(40.0)), max_size=3)), max_size=5),
    others=st.lists(st.one_of(SECONDS, st.just(90.0)), max_size=4),
    slots=st.sampled_from([1, 2]),
    seed=st.integers(0, 1_000),
)
def test_whatever_a_task_does_only_its_own_work_counts(
    steps: list[tuple[float, list[float]]], others: list[float], slots: int, seed: int
) -> None:
    """It works, awaits several at once, and works beside that, while others take its slot."""
    needed = sum(max(0.0, work - max(asked, default=0.0)) for work, asked in steps)
    script = Script()

    async def scenario() -> None:
        async with TestFleet(agents=[script.agent(slots=slots), children()], seed=seed) as fleet:
            handle = await fleet.submit("parent.run", steps)
            for seconds in others:
                await fleet.submit("slot.hold", seconds)

            outcome = await handle.outcome(timeout="1h")

            completed = outcome.status is Status.COMPLETED
            if abs(needed - TIMEOUT) > MOMENT:
                assert completed is (needed < TIMEOUT)
            assert script.worked == pytest.approx(min(needed, TIMEOUT), abs=MOMENT)

    asyncio.run(scenario())


# -- what a task asked for ends with it -------------------------------------------------------------------


@dataclass
class Family:
    """Tasks that ask for tasks: who of them runs, and how each ended."""

    running: set[str] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)

    def agent(self, name: str = "family", *, slots: int = 50) -> Agent:
        agent = Agent(name, slots=slots)

        @agent.capability(f"{name}.member", timeout="10m", retry=Retry(max_attempts=1))
        async def member(tree: list[object], ctx: Context) -> None:
            """Its children, or for how many seconds it works."""
            self.running.add(ctx.task_id)
            self.begun.append(ctx.task_id)
            try:
                await asyncio.gather(*(self._asked(one, ctx) for one in tree))
            finally:
                self.running.discard(ctx.task_id)

        return agent

    async def _asked(self, one: object, ctx: Context) -> None:
        if isinstance(one, list):
            await ctx.request("family.member", one, timeout="24h")
        else:
            assert isinstance(one, int | float)
            await asyncio.sleep(one)


@pytest.mark.parametrize("limit", [{"deadline": "20s"}, {"timeout": "20s", "durable": True}])
async def test_parent_that_runs_out_of_time_leaves_no_child_running(limit: dict[str, Any]) -> None:
    family = Family()
    async with TestFleet(agents=[family.agent()], replicas=2) as fleet:
        handle = await fleet.submit("family.member", [[[500]], 500], **limit)
        await fleet.advance("19s")
        assert len(family.running) == 3

        await failure_of(handle, "10s")

        await fleet.advance("1s")
        assert family.running == set()


async def test_parent_that_waits_for_longer_than_a_task_may_last_leaves_no_child_running() -> None:
    family = Family()
    parent = Agent("parents")

    @parent.capability("parent.run", timeout=TIMEOUT, retry=Retry(max_attempts=1))
    async def run(_: None, ctx: Context) -> None:
        while True:
            await ctx.request("family.member", [400], timeout="24h")

    async with TestFleet(agents=[parent, family.agent()]) as fleet:
        handle = await fleet.submit("parent.run")
        await fleet.advance(25 * 60 - 1)
        before = len(family.running)

        with pytest.raises(TaskFailed, match="its waits included"):
            await handle.result(timeout="1m")

        await fleet.advance("1s")
        assert (before, family.running) == (1, set())


async def test_child_in_its_queue_does_not_start_for_a_parent_that_was_canceled() -> None:
    family, elders = Family(), Family()
    async with TestFleet(agents=[family.agent(slots=1)]) as fleet:
        holder = await fleet.submit("family.member", [30], priority=Priority.P0)
        await fleet.advance("1s")
        await fleet.add(elders.agent("elder"))
        handle = await fleet.submit("elder.member", [[500]])
        await fleet.advance("1s")
        await handle.cancel()
        await holder.result(timeout="1m")
        await fleet.settled()

        assert len(family.begun) == 1
        assert elders.running == set()


async def test_child_that_its_parent_gave_up_is_canceled_and_the_next_attempt_asks_for_it_again() -> None:
    """The child has the same id in each attempt, and agents remember what was canceled for ten minutes."""
    began: list[tuple[int, float]] = []
    ended: list[str] = []
    agent = Agent("parents", slots=10)

    @agent.capability("parent.run", timeout="10s", retry=Retry(max_attempts=3, first="1s"))
    async def parent(_: None, ctx: Context) -> int:
        child = asyncio.ensure_future(ctx.request("child.run", timeout="24h"))
        try:
            await asyncio.wait({child}, timeout=1)
            while ctx.attempt < 3:  # this one works beside its child after it gave up on it
                child.cancel()
                await asyncio.sleep(1)
            return int(await child)
        finally:
            child.cancel()

    @agent.capability("child.run", timeout="10m")
    async def child(_: None, ctx: Context) -> int:
        began.append((ctx.attempt, asyncio.get_running_loop().time()))
        try:
            await asyncio.sleep(8)
        except asyncio.CancelledError:
            ended.append("canceled")
            raise
        return 7

    async with TestFleet(agents=[agent]) as fleet:
        handle = await fleet.submit("parent.run")

        assert await handle.result(int, timeout="5m") == 7

    assert ended == ["canceled", "canceled"]
    assert len(began) == 3


async def test_parent_that_is_handed_on_by_a_drain_finds_its_child_running() -> None:
    family, elders = Family(), Family()
    async with TestFleet(agents=[family.agent()], settings=Settings(drain_seconds=1.0)) as fleet:
        for _ in range(2):
            await fleet.add(elders.agent("elder", slots=1))
        handle = await fleet.submit("elder.member", [[500]])
        await fleet.advance("2s")
        busy = next(one for one in fleet.agents if one.name == "elder" and one.load.suspended)

        await fleet.drain(busy.id)
        await handle.result(timeout="20m")

        assert len(elders.begun) == 2
        assert len(family.begun) == 1


def draw_tree(seeded: random.Random, depth: int = 0) -> list[object]:
    return [
        draw_tree(seeded, depth + 1) if depth < 4 and seeded.random() < 0.6 else round(seeded.uniform(1, 60), 1)
        for _ in range(seeded.choice([1, 1, 2, 3]))
    ]


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.proof) for seed in range(3, 12))])
async def test_whenever_a_family_is_canceled_nothing_of_it_runs_a_moment_later(seed: int) -> None:
    family, seeded = Family(), random.Random(seed)
    async with TestFleet(agents=[family.agent(slots=seeded.choice([1, 4, 50]))], replicas=3, seed=seed) as fleet:
        bystander = await fleet.submit("family.member", [[50.0], 50.0])
        await fleet.advance("1s")
        known = set(family.running)
        handle = await fleet.submit("family.member", draw_tree(seeded))
        await fleet.advance(f"{round(seeded.uniform(0, 20_000))}ms")

        await handle.cancel()
        await handle.outcome(timeout="1m")
        await fleet.advance("1s")

        assert family.running == known & family.running
        begun = len(family.begun)
        await bystander.result(timeout="10m")
        await fleet.advance("10m")
        assert len(family.begun) - begun <= 1, "of the bystander's child at most"
