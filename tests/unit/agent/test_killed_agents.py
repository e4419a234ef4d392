"""What a killed agent had in hand runs elsewhere within a second, also what had been handed back before."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest

from coditect import Agent, Context
from coditect.agent.program import Host
from coditect.broker.memory.queue import MemoryDelivery
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


@pytest.fixture
def handed_back(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each task went back, by its input."""
    counted: Counter[str] = Counter()
    requeue = MemoryDelivery.requeue

    def count(self: MemoryDelivery) -> None:
        counted[self.message.body.decode()] += not self.lost
        requeue(self)

    monkeypatch.setattr(MemoryDelivery, "requeue", count)
    return counted


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("seed", range(2))
async def test_what_was_handed_back_to_a_killed_agent_runs_elsewhere_within_a_second(
    seed: int, handed_back: Counter[str]
) -> None:
    """One agent knows its queue as quick and takes too much of what is long; another gets that, and is killed."""
    log = Log()
    async with TestFleet(agents=[log.agent("greedy", slots=2)], seed=seed) as running:
        await asyncio.gather(*[running.request("long.work", (number, 0.001)) for number in range(-100, 0)])
        [victim] = await running.add(log.agent("victim", slots=30))
        handles = [await running.submit("long.work", (number, 60.0)) for number in range(20)]
        await running.advance("1s")
        lost = log.running_at(victim.id)
        assert {number for number in lost if handed_back[f"[{number},60.0]"]}, "some were handed back before"
        [heir] = await running.add(log.agent("heir", slots=30))

        killed = running.elapsed_seconds
        running.kill(victim.id)
        await running.advance("5s")

        late = {number: log.began[number][-1] for number in lost}
        assert {agent for agent, _ in late.values()} == {heir.id}
        assert max(at for _, at in late.values()) <= killed + SECOND
        await asyncio.gather(*(one.result(timeout="10m") for one in handles))
