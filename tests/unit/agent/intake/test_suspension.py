from __future__ import annotations

import asyncio

import pytest

from coditect import Agent, Context, Retry, Workflow
from coditect.agent.execution import Execution
from coditect.agent.intake import Intake
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.errors import TaskCanceled
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
    client = await scene.client()

    handles = await submit_all(client, "call.self", [3] * 6 * many)

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
    client = await scene.client()
    handles = await submit_all(client, "parent.run", list(range(30)))

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
    client = await scene.client()

    handles = await submit_all(client, "fan.out", [10] * 20)

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
    client = await scene.client()

    handle = await client.submit("fan.first")
    assert await handle.result(str, timeout="100s") == "quick"
    gate.set()

    await accounts_are_even(running)


@pytest.mark.parametrize(("deadline", "reason"), [(None, "canceled"), ("1s", "timeout")])
async def test_suspended_task_that_is_canceled_or_late_leaks_no_slot(
    scene: Scene, deadline: str | None, reason: str
) -> None:
    gate = asyncio.Event()
    agent = parent_of("child.run", slots=1)

    @agent.capability("child.run")
    async def wait(number: int) -> int:
        await gate.wait()
        return number

    running = await scene.start(agent)
    client = await scene.client()
    handle = await client.submit("parent.run", 1, deadline=deadline, max_attempts=1)
    await eventually(lambda: running.runtime.load().suspended == 1)

    if deadline is None:
        await handle.cancel(reason="changed my mind")

    assert (await failure_of(handle)).reason == reason
    gate.set()
    await accounts_are_even(running)
    assert await client.request("child.run", 7, int, timeout="100s") == 7


async def test_task_canceled_while_it_waits_to_go_on_leaves_the_slot_to_others(scene: Scene) -> None:
    answered = asyncio.Event()
    agent = parent_of("child.run", slots=1)
    blocking = asyncio.Event()

    @agent.capability("block.slot")
    async def block(_: None) -> None:
        answered.set()
        await blocking.wait()

    other = Agent("other", slots=1)

    @other.capability("child.run")
    async def child(number: int) -> int:
        await answered.wait()
        return number

    running = await scene.start(agent)
    client = await scene.serve(other)
    parent = await client.submit("parent.run", 1)
    await eventually(lambda: running.runtime.load().suspended == 1)
    blocker = await client.submit("block.slot")
    await answered.wait()
    await parent.cancel()

    with pytest.raises(TaskCanceled):
        await parent.result(timeout="100s")
    blocking.set()
    await blocker.result(timeout="100s")

    await accounts_are_even(running)


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
        for handle in works:
            await handle.result(timeout="5m")

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
