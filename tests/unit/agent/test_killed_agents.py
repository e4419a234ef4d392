"""What a killed agent had in hand runs elsewhere within a second: one death, one more execution, one outcome."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from coditect import Agent, Context, Workflow
from coditect.agent.services import Host
from coditect.testing import TestFleet, fleet

SECOND = 1.0


@dataclass
class Log:
    """Who began what, and when."""

    began: defaultdict[int, list[tuple[str, float]]] = field(default_factory=lambda: defaultdict(list))
    agent_id: dict[int, str] = field(default_factory=dict)

    def agent(self, name: str, *, slots: int) -> Agent:
        agent = Agent(name, slots=slots)

        @agent.capability("long.work", timeout="10m")
        async def work(task: tuple[int, float], ctx: Context) -> None:
            self.began[task[0]].append((ctx.agent_id, asyncio.get_running_loop().time()))
            await asyncio.sleep(task[1])

        return agent

    def running_at(self, agent_id: str) -> set[int]:
        return {number for number, runs in self.began.items() if runs[-1][0] == agent_id}


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents of a fleet under test record starts as real ones do; none of its tasks may become a suspect."""
    monkeypatch.setattr(fleet, "Host", lambda **_: Host())


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("seed", range(2))
async def test_task_handed_back_to_a_killed_agent_soon_runs_elsewhere(seed: int, hand_backs: Counter[str]) -> None:
    """One agent knows its queue as quick and takes too much of what is long; another gets that, and is killed."""
    log = Log()
    async with TestFleet(agents=[log.agent("greedy", slots=2)], seed=seed) as running:
        await asyncio.gather(*[running.request("long.work", (number, 0.001)) for number in range(-100, 0)])
        [victim] = await running.add(log.agent("victim", slots=30))
        handles = [await running.submit("long.work", (number, 60.0)) for number in range(20)]
        await running.advance("1s")
        lost = log.running_at(victim.id)
        assert {number for number in lost if hand_backs[f"[{number},60.0]"]}, "some were handed back before"
        [heir] = await running.add(log.agent("heir", slots=30))

        killed = running.elapsed_seconds
        running.kill(victim.id)
        await running.advance("5s")

        late = {number: log.began[number][-1] for number in lost}
        assert {agent for agent, _ in late.values()} == {heir.id}
        assert max(at for _, at in late.values()) <= killed + SECOND
        await asyncio.gather(*(one.result(timeout="10m") for one in handles))


Fault = Callable[[TestFleet, str], object]


def sleeper() -> tuple[Agent, list[tuple[str, int, int]]]:
    """An agent that sleeps as long as it is told, and its runs: agent process, fence, attempt."""
    runs: list[tuple[str, int, int]] = []
    agent = Agent("sleeper", slots=2)

    @agent.capability("sleep.long", timeout="2h")
    async def sleep(seconds: float, ctx: Context) -> float:
        runs.append((ctx.agent_id, ctx.fence, ctx.attempt))
        await asyncio.sleep(seconds)
        return seconds

    return agent, runs


def flow(seconds: float) -> Workflow:
    one = Workflow("one")
    one.task("sleep.long", seconds, name="sleep", timeout="2h")
    return one


DIED, LOST = [(1, "process_died"), (2, "")], [(1, "delivery_lost"), (1, "")]
"""The attempts and their reasons, of an agent that died, and of one that lives and lost its delivery alone."""


@pytest.mark.parametrize(
    ("fault", "within_seconds", "attempts"),
    [(TestFleet.kill, 1.0, DIED), (TestFleet.pause, 5.0, DIED), (TestFleet.drop_connections, 1.0, LOST)],
    ids=["killed", "stopped", "cut off"],
)
async def test_agent_that_is_gone_costs_one_more_execution(
    fault: Fault, within_seconds: float, attempts: list[tuple[int, str]]
) -> None:
    agent, runs = sleeper()
    async with TestFleet(agents=[agent], replicas=2, seed=3) as fleet:
        run = await fleet.start(flow(30))
        await fleet.advance("2s")
        first = runs[0][0]

        fault(fleet, first)
        value = await run.result(timeout="1h")

        assert (value, len(runs), runs[0][1:]) == (30, 2, (1, 1))
        assert runs[1][0] != first
        assert runs[1][1] > 1, "a fence of its own"
        assert runs[1][2] <= attempts[-1][0], "it may begin before the death is known, as the same attempt"
        assert [(row.attempt, row.reason) async for row in run.attempts()] == attempts
        assert fleet.elapsed_seconds <= 2 + within_seconds + 30


async def test_long_node_of_a_killed_agent_is_done_elsewhere() -> None:
    agent, runs = sleeper()
    async with TestFleet(agents=[agent], replicas=2) as fleet:
        run = await fleet.start(flow(720))
        await fleet.advance("11m")

        fleet.kill(runs[0][0])
        await fleet.advance("5s")

        assert [attempt for _, _, attempt in runs] == [1, 2]
        await fleet.advance("12m")
        assert await run.result(timeout="5s") == 720
