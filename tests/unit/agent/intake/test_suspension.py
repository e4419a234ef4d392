"""A task that awaits others holds no slot, its wait is none of its time, and what it asked for ends with it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from coditect import Agent, Context, Priority, Retry, TaskFailed, Workflow
from coditect.agent.execution import Execution
from coditect.agent.intake import Intake
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.errors import TaskCanceled
from coditect.model.result import Status
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from tests.support import eventually
from tests.unit.agent.scene import Running, Scene, failure_of


def recursive(name: str = "echo", *, slots: int = 1) -> Agent:
    """Asks itself `depth` times."""
    agent = Agent(name, slots=slots)

    @agent.capability("call.self", timeout="60s")
    async def call(depth: int, ctx: Context) -> int:
        if depth == 0:
            return 1
        return 1 + int(await ctx.request("call.self", depth - 1, timeout="60s"))

    return agent


def parent_of(child: str, *, slots: int = 4) -> Agent:
    agent = Agent("parent", slots=slots)

    @agent.capability("parent.run", timeout="60s")
    async def run(number: int, ctx: Context) -> int:
        return int(await ctx.request(child, number, timeout="60s"))

    return agent


def with_child(agent: Agent) -> Agent:
    @agent.capability("child.run", timeout="60s")
    async def double(number: int) -> int:
        return 2 * number

    return agent


async def submit_all(client: Client, capability: str, values: list[int]) -> list[Handle]:
    return [handle async for handle in client.submit_many(capability, values)]


async def results(handles: list[Handle]) -> list[int]:
    return list(await asyncio.gather(*(handle.result(int, timeout="55s") for handle in handles)))


async def loads_are_even(fleet: TestFleet) -> None:
    """As `accounts_are_even`."""
    await eventually(lambda: all((one.load.running, one.load.suspended) == (0, 0) for one in fleet.agents))


async def accounts_are_even(*agents: Running) -> None:
    """No slot and no place among the suspended is left behind."""
    await eventually(lambda: all(one.runtime.load().running == 0 for one in agents))
    await eventually(lambda: all(one.runtime.load().suspended == 0 for one in agents))


@pytest.mark.parametrize("many", [1, 3])
async def test_agents_with_one_slot_call_themselves_three_deep(scene: Scene, many: int) -> None:
    fleet = [await scene.start(recursive()) for _ in range(many)]

    handles = await submit_all(await scene.client(), "call.self", [3] * 6 * many)

    assert await results(handles) == [4] * 6 * many
    await accounts_are_even(*fleet)


@pytest.mark.parametrize(
    ("agents", "capability", "many"),
    [
        ([parent_of("child.run"), with_child(Agent("child", slots=4))], "parent.run", 200),
        pytest.param([with_child(parent_of("child.run", slots=1))], "parent.run", 1_000, marks=pytest.mark.proof),
        pytest.param([with_child(parent_of("child.run", slots=8))], "parent.run", 1_000, marks=pytest.mark.proof),
        pytest.param([recursive(slots=8)], "call.self", 300, marks=pytest.mark.proof),
    ],
    ids=["children of another agent", "of the same with one slot", "of the same", "of the same capability"],
)
async def test_many_parents_before_their_children_complete(agents: list[Agent], capability: str, many: int) -> None:
    """In virtual time, since thousands of tasks take a busy machine a while."""
    inputs = [3] * many if capability == "call.self" else list(range(many))
    async with TestFleet(agents=agents, settings=Settings(max_suspended=50)) as fleet:
        handles = await submit_all(fleet.client, capability, inputs)

        assert await results(handles) == ([4] * many if capability == "call.self" else [2 * one for one in inputs])
        await loads_are_even(fleet)


@pytest.mark.proof
async def test_bound_on_suspended_is_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []
    may_suspend = Intake.may_suspend

    def noted(intake: Intake, received: Execution) -> bool:
        allowed = may_suspend(intake, received)
        seen.append((allowed, running.runtime.load().suspended))
        return allowed

    monkeypatch.setattr(Intake, "may_suspend", noted)
    gate = asyncio.Event()
    other = Agent("child", slots=4)

    @other.capability("child.run")
    async def wait(number: int) -> int:
        await gate.wait()
        return number

    await scene.start(other)
    running = await scene.start(parent_of("child.run"), max_suspended=5)

    handles = await submit_all(await scene.client(), "parent.run", list(range(30)))

    await eventually(lambda: [allowed for allowed, _ in seen].count(False) >= 30)
    gate.set()

    assert await results(handles) == list(range(30))
    assert max(suspended for _, suspended in seen) == 5
    await accounts_are_even(running)


async def test_several_requests_at_once_take_one_slot_back(scene: Scene) -> None:
    agent = with_child(Agent("fan", slots=1))

    @agent.capability("fan.out")
    async def fan(many: int, ctx: Context) -> int:
        answers = await asyncio.gather(*(ctx.request("child.run", one) for one in range(many)))
        return sum(answers)

    running = await scene.start(agent)

    handles = await submit_all(await scene.client(), "fan.out", [10] * 20)

    assert await results(handles) == [90] * 20
    await accounts_are_even(running)


async def test_request_left_behind_by_its_handler_leaks_nothing(scene: Scene) -> None:
    gate = asyncio.Event()
    agent = Agent("fan", slots=1)

    @agent.capability("fan.first")
    async def first(_: None, ctx: Context) -> str:
        requests = [asyncio.ensure_future(ctx.request("child.wait", one)) for one in (True, False)]
        done, _left = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
        return str(await done.pop())

    @agent.capability("child.wait")
    async def wait(quick: bool) -> str:
        if not quick:
            await gate.wait()
        return "quick" if quick else "slow"

    running = await scene.start(agent, slots=2)

    handle = await scene.submit("fan.first")
    assert await handle.result(str, timeout="100s") == "quick"
    gate.set()

    await accounts_are_even(running)


@pytest.mark.parametrize(("deadline", "reason"), [(None, "canceled"), ("1s", "timeout")])
async def test_suspended_task_canceled_or_late_leaks_no_slot(scene: Scene, deadline: str | None, reason: str) -> None:
    gate = asyncio.Event()
    agent = parent_of("child.run", slots=1)

    @agent.capability("child.run")
    async def wait(number: int) -> int:
        await gate.wait()
        return number

    running = await scene.start(agent)
    handle = await scene.submit("parent.run", 1, deadline=deadline, max_attempts=1)
    await eventually(lambda: running.runtime.load().suspended == 1)

    if deadline is None:
        await handle.cancel(reason="changed my mind")

    assert (await failure_of(handle)).reason == reason
    gate.set()
    await accounts_are_even(running)
    assert await scene.request("child.run", 7, int, timeout="100s") == 7


async def test_a_handler_that_awaits_a_workflow_leaves_its_slot_to_the_workflow() -> None:
    agent = Agent("press", slots=1)

    @agent.capability("chapter.write")
    async def write(number: int) -> int:
        return 10 * number

    @agent.capability("book.write")
    async def book(number: int, ctx: Context) -> int:
        flow = Workflow("book")
        flow.task("chapter.write", number)
        run = await fleet.client.start(flow, idempotency_key=ctx.task_id)
        return int(await ctx.without_slot(run.result()))

    async with TestFleet(agents=[agent], settings=Settings(max_suspended=2)) as fleet:
        handles = await submit_all(fleet.client, "book.write", list(range(6)))

        assert await results(handles) == [10 * number for number in range(6)], "those above the bound took another turn"
        await loads_are_even(fleet)


async def test_a_wait_without_a_slot_raises_what_it_awaits_and_takes_the_slot_again() -> None:
    agent = Agent("press", slots=1)

    async def fail() -> None:
        raise ValueError("it is broken")

    @agent.capability("book.write", retry=Retry(max_attempts=1))
    async def book(number: int, ctx: Context) -> str:
        with pytest.raises(ValueError, match="it is broken"):
            await ctx.without_slot(fail())
        return "it is known"

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("book.write", 1) == "it is known"
        await loads_are_even(fleet)


async def test_a_handler_that_gives_up_its_wait_goes_on_with_a_slot() -> None:
    agent = Agent("one", slots=1)
    begun, working, most = asyncio.Event(), 0, 0

    async def work() -> None:
        nonlocal working, most
        working += 1
        most = max(most, working)
        await asyncio.sleep(1)
        working -= 1

    @agent.capability("wait.brief")
    async def wait(_: None, ctx: Context) -> str:
        begun.set()
        try:
            async with asyncio.timeout(0.2):
                await ctx.without_slot(asyncio.sleep(60))
        except TimeoutError:
            await work()
        return "late"

    @agent.capability("work.do")
    async def do(_: None) -> str:
        await work()
        return "done"

    async with TestFleet(agents=[agent]) as fleet:
        late = await fleet.client.submit("wait.brief", None)
        await begun.wait()
        done = await fleet.client.submit("work.do", None)
        assert (await late.result(str), await done.result(str)) == ("late", "done")
        await loads_are_even(fleet)

    assert most == 1


async def test_task_that_is_canceled_while_it_waits_for_its_slot_again_frees_none() -> None:
    agent, running, most = Agent("busy", slots=1), 0, 0

    @agent.capability("waits.first", timeout="9m")
    async def wait(seconds: int, ctx: Context) -> None:
        await ctx.without_slot(asyncio.sleep(seconds))

    @agent.capability("works.long", timeout="9m")
    async def work(seconds: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(seconds)
        running -= 1

    async with TestFleet(agents=[agent]) as fleet:
        waiting = await fleet.submit("waits.first", 2)
        await fleet.advance("1s")
        works = [await fleet.submit("works.long", 60) for _ in range(2)]
        await fleet.advance("4s")
        await waiting.cancel()
        with pytest.raises(TaskCanceled):
            await waiting.result(timeout="1m")
        for handle in works:
            await handle.result(timeout="5m")
        await loads_are_even(fleet)

    assert most == 1


async def test_no_look_is_planned_on_a_loop_that_has_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await scene.start(parent_of("child.run"))
    intake, ended = running.runtime._intake, asyncio.new_event_loop()
    ended.close()

    with monkeypatch.context() as collected:
        collected.setattr(intake, "_loop", ended)
        collected.setattr(intake, "_next_look", None)
        intake._watch()

        assert intake._next_look is None


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
