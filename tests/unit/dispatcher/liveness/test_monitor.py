from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from coditect import Options
from coditect.broker.management import ManagementUnavailable
from coditect.broker.memory import MemoryServer
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load
from coditect.registry.port import Search
from coditect.testing import State
from dispatcher.liveness.left_queues import KNOWN_SECONDS
from dispatcher.liveness.monitor import LOOK_SECONDS, RELIEF_SECONDS, SWEEP_SECONDS
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.transaction import Transaction
from tests.unit.dispatcher.liveness.watch import Watch, open_watch
from tests.unit.testing.workers import Sleepers

PATIENCE_SECONDS = 5.0
"""Within so long a frozen agent's work is begun elsewhere."""


class Stubborn:
    """An evictor that fails so many times, and then sees other connections of the process so many times."""

    def __init__(self, server: MemoryServer, failures: int = 0, *, others: int = 0) -> None:
        self._server = server
        self.failures = failures
        self._others = others

    async def evict(self, process: str) -> int:
        if self.failures:
            self.failures -= 1
            raise ManagementUnavailable("The broker's management API does not answer")
        if self._others:
            self._others -= 1
            return 1
        return await self._server.evict(process)

    async def queues(self) -> frozenset[str]:
        return await self._server.queues()

    async def messages(self, queue: str) -> int | None:
        return await self._server.messages(queue)


class InTurn(Stubborn):
    """An evictor that closes the agents' connections in this order only, and takes a second to refuse."""

    def __init__(self, server: MemoryServer, left: list[AgentId]) -> None:
        super().__init__(server)
        self.left = left

    async def evict(self, process: str) -> int:
        if self.left[:1] != [process]:
            await asyncio.sleep(1.0)
            raise ManagementUnavailable("The broker's management API does not answer")
        self.left.pop(0)
        return await super().evict(process)


async def test_work_of_a_frozen_agent_is_begun_elsewhere_within_five_seconds_and_once() -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        handle = await watch.fleet.submit("sleep.well", 4.0)
        await watch.fleet.advance("1s")
        (frozen,) = sleepers.started
        watch.fleet.pause(frozen)
        frozen_at = watch.fleet.elapsed_seconds

        while len(sleepers.started) == 1:
            await asyncio.sleep(0.05)

        assert watch.fleet.elapsed_seconds - frozen_at < PATIENCE_SECONDS
        assert await handle.result(str) == sleepers.started[1] != frozen
        await watch.fleet.advance(f"{SWEEP_SECONDS + KNOWN_SECONDS + 1}s")
        assert len(sleepers.started) == 2
        assert watch.lost["first"] == [AgentId(frozen)]
        assert watch.told("agent.offline") == [frozen]
        assert watch.queues(AgentId(frozen)) == []


@pytest.mark.parametrize("others", [0, 1], ids=["all connections listed", "that with its tasks listed late"])
async def test_work_of_an_agent_that_says_that_it_is_cut_off_is_begun_elsewhere_before_its_lease_ends(
    others: int,
) -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        monitor = await watch.dispatcher(evict=Stubborn(watch.fleet.server, others=others))
        handle = await watch.fleet.submit("sleep.well", 4.0)
        await watch.fleet.advance("1s")
        (cut_off,) = map(AgentId, sleepers.started)
        watch.fleet.pause(cut_off)  # it answers nothing by the broker
        told_at = watch.fleet.elapsed_seconds

        await watch.fleet.registry.renew(cut_off, Load(AgentStatus.OFFLINE), lease_seconds=1.5)
        while len(sleepers.started) == 1:
            await asyncio.sleep(0.05)

        assert watch.fleet.elapsed_seconds - told_at < LOOK_SECONDS + (1 + others) * RELIEF_SECONDS + 0.3
        assert (monitor.evicted, watch.lost["first"]) == (1 + others, [])
        assert await handle.result(str) == sleepers.started[1]


async def test_agent_that_says_that_it_is_cut_off_and_answers_keeps_its_work() -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        monitor = await watch.dispatcher(evict=watch.fleet.server)
        handle = await watch.fleet.submit("sleep.well", 4.0)
        await watch.fleet.advance("1s")
        (agent,) = map(AgentId, sleepers.started)

        for _ in range(10):
            await watch.fleet.registry.renew(agent, Load(AgentStatus.OFFLINE), lease_seconds=1.5)
            await watch.fleet.advance("200ms")

        assert await handle.result(str) == agent
        assert (monitor.evicted, watch.lost["first"]) == (0, [])


async def test_frozen_agent_that_continues_registers_again_and_works_as_before() -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        monitor = await watch.dispatcher(evict=watch.fleet.server)
        handle = await watch.fleet.submit("sleep.well", 20.0)
        await watch.fleet.advance("1s")
        (frozen,) = sleepers.started
        watch.fleet.pause(frozen)
        await watch.fleet.advance("6s")
        assert monitor.evicted == 1

        watch.fleet.resume(frozen)
        await watch.fleet.advance("2s")
        other = next(one.id for one in watch.fleet.agents if one.id != frozen)
        watch.fleet.kill(other)
        after = await watch.fleet.submit("sleep.well", 1.0)

        assert await after.result(str) == frozen
        assert await handle.result(str) == frozen
        assert watch.told("agent.online").count(frozen) == 2
        assert watch.lost["first"] == [frozen, other]
        assert [one.agent_id for one in await watch.fleet.registry.find(Search())] == [frozen]


async def test_agent_that_registers_again_amid_its_eviction_keeps_what_it_has_acquired_since() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        monitor = await watch.dispatcher(evict=Stubborn(watch.fleet.server, failures=100))
        await watch.fleet.advance("1s")
        frozen = watch.fleet.agents[0].id
        watch.fleet.pause(frozen)
        while not monitor.is_gone(frozen):
            await asyncio.sleep(0.05)

        watch.fleet.resume(frozen)
        await watch.fleet.advance("20s")

        assert not monitor.is_gone(frozen)
        assert watch.lost["first"] == watch.told("agent.offline") == []


async def test_killed_agent_s_work_is_repeated_once_by_the_broker_alone() -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        monitor = await watch.dispatcher(evict=watch.fleet.server)
        handle = await watch.fleet.submit("sleep.well", 4.0)
        await watch.fleet.advance("1s")
        (killed,) = sleepers.started
        watch.fleet.kill(killed)

        assert await handle.result(str) != killed
        await watch.fleet.advance(f"{SWEEP_SECONDS + KNOWN_SECONDS + 1}s")

        assert len(sleepers.started) == 2
        assert watch.lost["first"] == [AgentId(killed)]
        assert monitor.evicted == 0
        assert watch.queues(AgentId(killed)) == []


async def test_queue_of_a_dead_agent_goes_only_when_it_is_empty() -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        gone = watch.fleet.agents[0].id
        watch.fleet.kill(gone)
        pinned = []
        for _ in range(100):
            pinned.append(await watch.fleet.submit("sleep.well", 0.01, options=Options(pin=gone)))
            await watch.fleet.advance("100ms")

        for handle in pinned:
            await handle.result(str, timeout="1m")
        await watch.fleet.advance("70s")

        assert watch.queues(gone) == []


async def test_agent_that_ends_in_order_is_told_of_and_nothing_is_closed() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        monitor = await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("2s")

        (ended, *_) = await watch.fleet.drain(watch.fleet.agents[0].id)
        await watch.fleet.advance("10s")

        assert ended.state is State.ENDED
        assert watch.lost["first"] == [ended.id]
        assert watch.told("agent.offline") == [ended.id]
        assert monitor.evicted == 0


async def _wipe(watch: Watch) -> None:
    for _ in range(20):
        watch.fleet.wipe_registry()
        await watch.fleet.advance("300ms")


async def _hang(watch: Watch) -> None:
    watch.fleet.registry.slow_seconds = 5.0
    await watch.fleet.advance("20s")
    watch.fleet.registry.slow_seconds = 0.0


async def _fail_and_wipe(watch: Watch) -> None:
    watch.fleet.registry.failing = True
    watch.fleet.wipe_registry()
    await watch.fleet.advance("20s")
    watch.fleet.registry.failing = False


async def _wipe_everything(watch: Watch) -> None:
    watch.fleet.server.stop()
    await watch.fleet.advance("10s")
    watch.fleet.wipe_registry()
    watch.fleet.server.start(lose_messages=True)


async def _block(watch: Watch) -> None:
    watch.fleet.server.block()
    await watch.fleet.advance("20s")
    watch.fleet.server.unblock()


@pytest.mark.parametrize("fault", [_wipe, _hang, _fail_and_wipe, _wipe_everything, _block])
async def test_no_fault_of_the_registry_or_the_broker_makes_an_agent_dead(fault: object) -> None:
    sleepers = Sleepers(slots=1)
    async with open_watch([sleepers.agent], replicas=4) as watch:
        monitor = await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("5s")

        await fault(watch)  # type: ignore[operator]
        await watch.fleet.advance("20s")

        assert monitor.lost == monitor.evicted == 0
        assert watch.told("agent.offline") == []


async def test_agent_that_cannot_reach_the_registry_but_answers_is_left_alone() -> None:
    async with open_watch([Sleepers().agent], replicas=1) as watch:
        monitor = await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("5s")

        for _ in range(300):
            await watch.fleet.registry.deregister(watch.fleet.agents[0].id)
            await watch.fleet.advance("100ms")

        assert monitor.lost == 0


async def test_frozen_while_the_registry_hangs_is_found_after_it() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("5s")
        watch.fleet.registry.failing = True
        (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)
        await watch.fleet.advance("8s")
        assert watch.lost["first"] == []

        watch.fleet.registry.failing = False
        await watch.fleet.advance("5s")

        assert watch.lost["first"] == [frozen.id]


async def test_without_an_evictor_the_broker_s_own_patience_decides_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        with caplog.at_level(logging.WARNING, "dispatcher.liveness.monitor"):
            monitor = await watch.dispatcher(evict=None)
        handle = await watch.fleet.submit("sleep.well", 4.0)
        await watch.fleet.advance("1s")
        (frozen,) = sleepers.started
        watch.fleet.pause(frozen)

        await watch.fleet.advance("5s")
        assert watch.lost["first"] == [AgentId(frozen)]
        assert len(sleepers.started) == 1

        assert await handle.result(str) != frozen
        assert monitor.evicted == 0
        warned = [one for one in caplog.records if "10 to 15 s" in one.message]
        assert len(warned) == 1


async def test_eviction_that_fails_is_tried_again() -> None:
    sleepers = Sleepers()
    async with open_watch([sleepers.agent]) as watch:
        monitor = await watch.dispatcher(evict=Stubborn(watch.fleet.server, failures=3))
        await watch.fleet.advance("2s")
        (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)

        await watch.fleet.advance("9s")

        assert watch.lost["first"] == [frozen.id]
        assert monitor.evicted == 1


async def test_agent_that_is_cut_off_is_evicted_although_another_one_is_meanwhile() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        cut_off, gone = (one.id for one in watch.fleet.agents)
        evictor = InTurn(watch.fleet.server, [gone, cut_off])
        monitor = await watch.dispatcher(evict=evictor)
        await watch.fleet.advance("1s")
        watch.fleet.pause(cut_off)
        watch.fleet.pause(gone)

        for _ in range(40):
            await watch.fleet.registry.renew(cut_off, Load(AgentStatus.OFFLINE), lease_seconds=1.5)
            await watch.fleet.advance("200ms")

        assert (evictor.left, monitor.evicted, watch.lost["first"]) == ([], 2, [gone])
        (offline,) = [event for event in watch.fleet.events if event.type == "agent.offline"]
        assert offline.data["connections"] == 1


async def test_agent_is_gone_though_its_eviction_never_works() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher(evict=Stubborn(watch.fleet.server, failures=1_000))
        await watch.fleet.advance("2s")
        (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)

        await watch.fleet.advance("9s")

        assert watch.lost["first"] == [frozen.id]


async def test_agent_is_found_dead_although_each_transaction_of_the_store_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = MemoryDatabase.run

    async def slow(database: MemoryDatabase, body: Callable[[Transaction], object]) -> object:
        await asyncio.sleep(2.0)
        return await run(database, body)

    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        monkeypatch.setattr(MemoryDatabase, "run", slow)
        await watch.fleet.advance("10s")
        (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)
        await watch.fleet.advance("20s")

        assert watch.lost["first"] == [frozen.id]


async def test_two_dispatchers_both_notice_and_one_acts() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        first = await watch.dispatcher("first", evict=watch.fleet.server)
        second = await watch.dispatcher("second", evict=watch.fleet.server)
        await watch.fleet.advance("2s")
        assert (first.leads, second.leads) == (True, False)
        (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)

        await watch.fleet.advance("9s")

        assert watch.lost["first"] == watch.lost["second"] == [frozen.id]
        assert (first.evicted, second.evicted) == (1, 0)
        assert watch.told("agent.offline") == [frozen.id]


async def test_when_the_one_that_acts_ends_in_the_middle_the_other_acts_in_its_place() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher("first", evict=Stubborn(watch.fleet.server, failures=1_000))
        second = await watch.dispatcher("second", evict=watch.fleet.server)
        await watch.fleet.advance("2s")
        (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)
        await watch.fleet.advance("4s")

        await watch.end("first")
        await watch.fleet.advance("4s")

        assert second.leads
        assert second.evicted == 1
        assert watch.lost["second"] == [frozen.id]
