"""Limits on concurrency by key: in the whole fleet at most so many tasks with one key run at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from coditect import Agent, Context, Rate, Retry, RetryAfter, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.errors import TaskRejected
from coditect.model.ids import AgentId
from coditect.operations.locate import locate_task, task_verdict
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.testing import TestFleet


@dataclass
class Runs:
    """The runs of a limited capability: those under way by key, the most at once, and the order of the starts."""

    now: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    order: list[tuple[str, int]] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    starts: list[tuple[str, float]] = field(default_factory=list)
    """In which agent they began, and when."""


async def holder(fleet: TestFleet, runs: Runs) -> AgentId:
    """The one agent that runs something, after two seconds; from now on it counts no longer."""
    await fleet.advance("2s")
    (found,) = [one.agent_id for one in await fleet.registry.find(Search()) if one.load.running]
    runs.now.clear()
    return found


def builder(runs: Runs, most: int = 1, *, slots: int = 4, reserve: int = 1, seconds: float = 1.0, **more: Any) -> Agent:
    agent = Agent("builder", slots=slots, reserve=reserve)

    @agent.capability("repo.build", concurrency=("{input.repo}", most), **more)
    async def build(task: dict[str, Any], ctx: Any) -> int:
        repo, number = str(task["repo"]), int(task["number"])
        runs.order.append((repo, number))
        runs.attempts.append(ctx.attempt)
        runs.starts.append((ctx.agent_id, asyncio.get_running_loop().time()))
        runs.now[repo] += 1
        runs.most[repo] = max(runs.most[repo], runs.now[repo])
        try:
            await asyncio.sleep(seconds)
        finally:
            runs.now[repo] -= 1
        return number

    @agent.capability("repo.count")
    async def count(number: int) -> int:
        return number

    @agent.capability("repo.clone", timeout="9m")
    async def clone(seconds: float) -> None:
        await asyncio.sleep(seconds)

    return agent


def task(repo: str, number: int) -> dict[str, Any]:
    return {"repo": repo, "number": number}


@pytest.mark.parametrize("most", [1, 3])
async def test_at_most_so_many_tasks_of_a_key_run_at_once_in_the_fleet(most: int) -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, most)], replicas=2) as fleet:
        handles = [await fleet.submit("repo.build", task("a", number)) for number in range(12)]
        began = fleet.elapsed_seconds

        assert [await handle.result() for handle in handles] == list(range(12))
        took = fleet.elapsed_seconds - began

    assert runs.most == {"a": most}
    assert 12 / most <= took <= 12 / most + 3, "a key that gets free is taken at once"
    assert set(runs.attempts) == {1}, "a wait burns no attempt"


async def test_tasks_of_a_key_begin_in_the_order_in_which_they_were_submitted() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs)], replicas=2) as fleet:
        handles = []
        for number in range(10):
            handles.append(await fleet.submit("repo.build", task("a", number)))
            await fleet.advance("50ms")

        assert [await handle.result() for handle in handles] == list(range(10))

    assert runs.order == [("a", number) for number in range(10)]


async def test_other_keys_and_other_capabilities_go_on_while_many_tasks_of_one_key_wait() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, slots=2, seconds=60.0)]) as fleet:
        for number in range(20):
            await fleet.submit("repo.build", task("a", number))
        await fleet.advance("1s")
        for number in range(3):
            await fleet.submit("repo.build", task(f"b{number}", number), priority="p0")
        assert await fleet.request("repo.count", 1) == 1
        await fleet.advance("65s")

    assert runs.most == {"a": 1, "b0": 1, "b1": 1, "b2": 1}


async def test_a_task_above_the_bound_of_waiting_tasks_goes_back_and_other_keys_go_on() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs)], settings=Settings(max_suspended=3)) as fleet:
        handles = [await fleet.submit("repo.build", task("a", number)) for number in range(20)]
        other = await fleet.submit("repo.build", task("b", 99))

        assert await other.result() == 99
        assert len(runs.order) < 10
        assert [await handle.result() for handle in handles] == list(range(20))

    assert runs.most == {"a": 1, "b": 1}
    assert set(runs.attempts) == {1}


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(
    "how", ["fails for good", "fails and is tried again", "asks for later", "times out", "canceled"]
)
async def test_next_task_of_a_key_begins_at_once_however_its_holder_ended(how: str, durable: bool) -> None:
    agent, now, moments = Agent("builder", slots=4), asyncio.get_running_loop().time, dict[str, float]()
    retry = Retry(max_attempts=2, first="1m") if how == "fails and is tried again" else 1

    @agent.capability("repo.build", concurrency=("{input.repo}", 1), retry=retry, timeout="3s")
    async def build(task: dict[str, str], ctx: Context) -> None:
        moments.setdefault(f"{task['name']} began", now())
        if task["name"] == "next":
            return
        try:
            await asyncio.sleep(60 if how in ("times out", "canceled") else 3)
            raise RetryAfter("1m") if how == "asks for later" else RuntimeError("boom")
        finally:
            moments["holder ended"] = now()

    async with TestFleet(agents=[agent], replicas=3) as fleet:
        holder = await fleet.submit("repo.build", {"repo": "app", "name": "holder"}, durable=durable)
        await fleet.advance("1s")
        waiting = await fleet.submit("repo.build", {"repo": "app", "name": "next"}, durable=durable)
        await fleet.advance("1s")
        if how == "canceled":
            await holder.cancel()
        await waiting.result(timeout="50s")

        assert 0 <= moments["next began"] - moments["holder ended"] < 1


@pytest.mark.parametrize("durable", [False, True])
async def test_task_that_gets_its_key_while_its_agent_is_busy_begins_in_an_idle_agent(durable: bool) -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, slots=1, reserve=0, seconds=10.0)], replicas=2) as fleet:
        await fleet.submit("repo.build", task("a", 0), durable=durable)
        await fleet.advance("1s")
        waiting = await fleet.submit("repo.build", task("a", 1), durable=durable)
        await fleet.advance("1s")
        await fleet.submit("repo.clone", 500)  # takes the slot of the task that waits for its key
        await waiting.result(timeout="1m")

    (holder, held), (heir, start) = runs.starts
    assert (heir, runs.attempts) == (holder, [1, 1])
    assert 10 <= start - held <= 14


async def test_task_from_an_agent_s_own_queue_keeps_its_key_while_the_capability_s_queue_has_a_backlog() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, slots=2, reserve=0, seconds=10.0)]) as fleet:
        await fleet.submit("repo.build", task("a", 0))
        await fleet.advance("1s")
        waiting = await fleet.submit("repo.build", task("a", 1), pin=fleet.agents[0].id)
        await fleet.advance("1s")
        for _ in range(2):  # they take the slots of the holder and of the task that waits for its key
            await fleet.submit("repo.clone", 100)
        backlog = [await fleet.submit("repo.build", task(f"b{number}", number)) for number in range(4)]
        await waiting.result(timeout="5m")
        for handle in backlog:
            await handle.result(timeout="5m")

    assert runs.order[:2] == [("a", 0), ("a", 1)]
    assert len(runs.order) == 6


async def test_granted_lock_is_renewed_while_its_task_waits_for_a_slot() -> None:
    agent, fences = Agent("deployer", slots=2, reserve=0), list[int]()

    @agent.capability("site.deploy", retry=Retry(max_attempts=1), timeout="9m")
    async def deploy(seconds: float, ctx: Context) -> None:
        async with ctx.lock("site:shop", ttl="5s") as lock:
            fences.append(lock.fence)
            await asyncio.sleep(seconds)

    @agent.capability("site.watch", timeout="9m")
    async def watch(_: None) -> None:
        await asyncio.sleep(100)

    async with TestFleet(agents=[agent]) as fleet:
        await fleet.submit("site.deploy", 10)
        await fleet.advance("1s")
        waiting = await fleet.submit("site.deploy", 0)
        await fleet.advance("1s")
        for _ in range(2):  # they take the slots of the holder and of the task that waits for its lock
            await fleet.submit("site.watch")
        await waiting.result(timeout="5m")

    assert len(fences) == 2


async def test_the_key_of_a_killed_agent_is_free_after_its_eviction() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, seconds=5.0)], replicas=2) as fleet:
        handles = [await fleet.submit("repo.build", task("a", number)) for number in range(4)]
        fleet.kill(await holder(fleet, runs))

        assert [await handle.result() for handle in handles] == list(range(4))
        assert fleet.elapsed_seconds < 60

    assert runs.most == {"a": 1}


async def test_a_holder_that_stands_still_loses_its_key_and_is_canceled_when_it_goes_on() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, seconds=20.0)], replicas=2) as fleet:
        handles = [await fleet.submit("repo.build", task("a", number)) for number in range(3)]
        fleet.pause(paused := await holder(fleet, runs))
        await fleet.advance("90s")
        began = len(runs.order)
        fleet.resume(paused)

        assert [await handle.result() for handle in handles] == list(range(3))

    assert began > 1, "others had the key meanwhile"


async def test_tasks_of_workflows_have_the_same_keys_and_wait_longer_than_their_own_timeout() -> None:
    runs, flow = Runs(), Workflow("builds")
    for number in range(12):
        flow.task("repo.build", task("a", number), name=f"n{number}", timeout="15s")
    async with TestFleet(agents=[builder(runs, seconds=10.0)], replicas=2) as fleet:
        run = await fleet.start(flow)
        direct = await fleet.submit("repo.build", task("a", 99))

        await run.result()
        assert await direct.result() == 99

    assert (runs.most, len(runs.order)) == ({"a": 1}, 13)
    assert set(runs.attempts) == {1}


async def test_workflow_tasks_above_the_bound_of_waiting_tasks_come_again_without_haste() -> None:
    runs, flow = Runs(), Workflow("builds")
    for number in range(8):
        flow.task("repo.build", task("a", number), name=f"n{number}")
    async with TestFleet(agents=[builder(runs, seconds=5.0)], settings=Settings(max_suspended=2)) as fleet:
        run = await fleet.start(flow)
        await fleet.advance("20s")
        starts = sum(event.type == "node.started" for event in fleet.events)
        assert 0 < starts <= 8 * 30, "each comes at most about once a second"
        await run.result()

    assert set(runs.attempts) == {1}


async def test_a_drain_begins_no_task_that_waits_for_its_key_and_another_agent_takes_it() -> None:
    runs, flow = Runs(), Workflow("builds")
    flow.task("repo.build", task("a", 9), name="only")
    async with TestFleet(agents=[builder(runs, seconds=10.0)], settings=Settings(drain_seconds=60)) as fleet:
        handles = [await fleet.submit("repo.build", task("a", number)) for number in range(4)]
        run = await fleet.start(flow)
        await fleet.advance("1s")
        began = fleet.elapsed_seconds

        await fleet.drain("builder-1")
        assert len(runs.order) == 1
        assert fleet.elapsed_seconds - began <= 10

        await fleet.add(builder(runs))
        assert [await handle.result() for handle in handles] == list(range(4))
        await run.result()

    assert len(runs.order) == 5
    assert set(runs.attempts) == {1}


async def test_why_not_names_the_key_for_which_a_task_waits() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, seconds=10.0)]) as fleet:
        handles = [await fleet.submit("repo.build", task("a", number)) for number in range(2)]
        await fleet.advance("1s")
        async with MemoryBroker(fleet.server, name="person") as broker:
            found = [await locate_task(broker, one.task_id, waiting=(), dead=(), most=10) for one in handles]
        runs_now, waits = (task_verdict("task", one, None, named=False) for one in found)
        assert [await handle.result() for handle in handles] == [0, 1]

    assert (runs_now.takes, waits.takes) == (True, False)
    assert "builder" in waits.sentence
    assert "waits for its key concurrency:repo.build/a" in waits.sentence
    assert "coditect lock list 'concurrency:repo.build/a'" in waits.fix


async def test_a_key_and_a_rate_hold_together() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, seconds=0.1, rate=Rate("2/s", burst=1))], replicas=2) as fleet:
        handles = [await fleet.submit("repo.build", task("a", number)) for number in range(8)]

        assert [await handle.result() for handle in handles] == list(range(8))
        assert fleet.elapsed_seconds >= 3.5

    assert runs.most == {"a": 1}


@pytest.mark.parametrize("body", [{"number": 1}, {"repo": None, "number": 1}, {"repo": ["a"], "number": 1}, 7])
async def test_a_task_without_a_key_is_rejected_before_its_handler_is_called(body: Any) -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs)]) as fleet:
        with pytest.raises(TaskRejected) as refused:
            await fleet.request("repo.build", body)

    assert "key" in str(refused.value)
    assert runs.order == []


async def test_a_task_that_waits_for_its_key_can_be_canceled_and_expires() -> None:
    runs = Runs()
    async with TestFleet(agents=[builder(runs, seconds=20.0)]) as fleet:
        first = await fleet.submit("repo.build", task("a", 1))
        await fleet.advance("1s")
        canceled = await fleet.submit("repo.build", task("a", 2))
        late = await fleet.submit("repo.build", task("a", 3), deadline="5s")
        too_late = await fleet.submit("repo.build", task("a", 5), start_within="5s")
        last = await fleet.submit("repo.build", task("a", 4))
        await fleet.advance("1s")
        await canceled.cancel()

        assert (await canceled.outcome()).status == "canceled"
        assert (await late.outcome()).status in ("rejected", "expired")
        assert (await too_late.outcome()).status == "rejected"
        assert [await first.result(), await last.result()] == [1, 4]

    assert runs.order == [("a", 1), ("a", 4)]
