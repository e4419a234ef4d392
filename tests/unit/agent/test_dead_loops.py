"""An agent whose loop dies is not ready within a second, heals and loses nothing; for ever, the process ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from coditect import Agent, Context
from coditect.agent import heartbeat, program
from coditect.agent.program import unready
from coditect.aio.supervisor import LoopDied, RestartLimits, Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.model.ids import AgentId
from coditect.model.registration import Load
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.testing.process import VirtualProcess
from tests.loops import loops, strike_once

BEATS, CLOCK = "heartbeat of worker-1", "clock"


def worker(executed: Counter[str]) -> Agent:
    agent = Agent("worker", slots=2)

    @agent.capability("work")
    async def work(_: None, ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.5)

    return agent


def why_not(process: VirtualProcess) -> str:
    return unready(process.broker, process.health)


async def test_every_loop_of_an_agent_is_critical_or_optional() -> None:
    async with TestFleet([worker(Counter())]) as fleet:
        (process,) = fleet.agents

        assert loops(process.health, critical=True) == {BEATS}
        assert loops(process.health, critical=False) == {CLOCK}
        assert why_not(process) == ""


@pytest.mark.parametrize("name", [BEATS, CLOCK])
async def test_loop_that_dies_is_healed_and_its_agent_never_taken_for_dead(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    executed: Counter[str] = Counter()
    async with TestFleet([worker(executed)]) as fleet:
        (process,) = fleet.agents
        handles = [await fleet.submit("work") for _ in range(20)]
        await fleet.advance(1)

        await strike_once(process.health, name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        down = why_not(process)
        await fleet.advance(2)

        assert (repr(name) in down) is (name == BEATS)
        assert why_not(process) == ""
        assert process.health.deaths == {name: 1}
        for handle in handles:
            await handle.result()
        assert Counter(executed.values()) == {1: 20}
        assert not [event for event in fleet.events if event.type == "agent.offline"]
        fleet.forgive_crashes()
    (said,) = [record for record in caplog.records if record.message == "A loop died; it is started again"]
    assert (vars(said)["loop"], vars(said)["critical"]) == (name, name == BEATS)


class Broken(MemoryRegistry):
    """Renews no lease, as no registry should fail."""

    async def renew(self, agent_id: AgentId, load: Load, *, lease_seconds: float) -> bool:
        raise RuntimeError("the fault that was asked for")


async def test_program_ends_with_the_loop_that_died_for_ever_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MemoryServer()

    @asynccontextmanager
    async def registry(url: str) -> AsyncIterator[MemoryRegistry]:
        yield Broken()

    def broker(url: str, *, name: str, **options: Any) -> MemoryBroker:
        return MemoryBroker(server, name=name)

    monkeypatch.setattr(program, "AmqpBroker", broker)
    monkeypatch.setattr(program, "RedisRegistry", registry)
    monkeypatch.setattr(program, "collect_rarely", lambda: None)
    monkeypatch.setattr(heartbeat, "Supervisor", partial(Supervisor, limits=RestartLimits(first_pause_seconds=0.001)))

    with pytest.raises(LoopDied) as ended:
        await program.serve(worker(Counter()), Settings(beat_seconds=0.01))

    assert ended.value.exit_code == 1
    assert str(ended.value.facts["loop"]).startswith("heartbeat of worker-")
    assert "the fault that was asked for" in str(ended.value.facts["reason"])
