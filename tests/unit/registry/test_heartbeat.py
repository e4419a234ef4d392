from __future__ import annotations

import asyncio
import logging
import os
import time

import pytest

from coditect.agent.heartbeat import Heartbeat, load_sampler
from coditect.errors import InvalidTask
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from tests.support import eventually, longest_stall
from tests.unit.registry.samples import IDLE, make_registration

A = AgentId("reviewer-0000000a")
LOGGER = "coditect.agent.heartbeat"


class CountingLoad:
    """Each beat carries another number."""

    def __init__(self) -> None:
        self.beats = 0

    def __call__(self) -> Load:
        self.beats += 1
        return Load(status=AgentStatus.BUSY, completed=self.beats)


def make_presence(
    registry: MemoryRegistry, load: CountingLoad | None = None, *, beat_seconds: float = 0.02
) -> Heartbeat:
    return Heartbeat(
        registry, make_registration(), load or CountingLoad(), beat_seconds=beat_seconds, lease_seconds=0.5
    )


async def known(registry: MemoryRegistry) -> AgentRecord | None:
    return await registry.get(A)


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records if record.name == LOGGER]


async def test_agent_is_registered_in_the_block_and_each_beat_renews_the_lease_with_a_fresh_load() -> None:
    registry, load = MemoryRegistry(), CountingLoad()

    async with make_presence(registry, load) as presence:
        inside = await known(registry)
        assert presence.known
        await eventually(lambda: load.beats > 30)
        later = await known(registry)

    assert inside is not None and later is not None
    assert inside.registration == make_registration()
    assert later.load.completed >= 30
    assert later.lease_ms > 300
    assert await known(registry) is None


async def test_status_is_kept_over_later_beats() -> None:
    registry, load = MemoryRegistry(), CountingLoad()

    async with make_presence(registry, load) as presence:
        presence.set_status(AgentStatus.DRAINING)
        told = load.beats
        await eventually(lambda: load.beats > told + 5)

        assert [one.load.status for one in await registry.find(Search())] == [AgentStatus.DRAINING]


async def test_status_is_told_at_once() -> None:
    registry = MemoryRegistry()

    async with make_presence(registry, beat_seconds=600) as presence:
        presence.set_status(AgentStatus.DRAINING)

        async def draining() -> bool:
            return bool(await registry.find(Search(status=AgentStatus.DRAINING)))

        await eventually(draining)
        presence.set_status(None)

        async def busy() -> bool:
            return bool(await registry.find(Search(status=AgentStatus.BUSY)))

        await eventually(busy)


async def test_wiped_registry_gets_the_agent_back_with_the_next_beat(caplog: pytest.LogCaptureFixture) -> None:
    registry = MemoryRegistry()

    async with make_presence(registry):
        registry.wipe()
        await eventually(lambda: known(registry))
        found = await registry.find(Search(capability="code.review"))

    assert len(found) == 1
    assert levels(caplog) == ["WARNING"]


async def test_failing_registry_is_told_of_once_when_it_starts_and_once_when_it_is_healed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    registry = MemoryRegistry()
    load = CountingLoad()

    async with make_presence(registry, load) as presence:
        registry.failing = True
        beats = load.beats
        await eventually(lambda: load.beats > beats + 10)
        assert not presence.known
        registry.failing = False
        registry.wipe()
        await eventually(lambda: presence.known)
        beats = load.beats
        await eventually(lambda: load.beats > beats + 5)

    assert levels(caplog) == ["WARNING", "INFO"]


async def test_hanging_registry_delays_start_and_end_by_its_own_limit_and_the_loop_not_at_all() -> None:
    registry = MemoryRegistry()
    registry.slow_seconds = 60
    started = time.monotonic()

    async with make_presence(registry):
        pass
    left = time.monotonic()

    assert left - started < registry.slow_seconds / 2

    registry = MemoryRegistry()

    async with make_presence(registry):
        registry.slow_seconds = 60
        stall = await longest_stall(0.3)

    assert stall < 0.2


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_error_of_the_body_comes_out_as_it_is_and_the_agent_is_gone(error: type[BaseException]) -> None:
    registry = MemoryRegistry()

    with pytest.raises(error):
        async with make_presence(registry):
            raise error

    assert await known(registry) is None


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()

    async with make_presence(MemoryRegistry()):
        inside = asyncio.all_tasks()

    assert len(inside) == len(before) + 1
    assert asyncio.all_tasks() == before


async def test_registration_that_json_cannot_say_fails_at_the_start() -> None:
    offer = CapabilitySpec(name="code.review", input_schema={"default": object()})
    presence = Heartbeat(MemoryRegistry(), make_registration(offers=(offer,)), lambda: IDLE)

    with pytest.raises(InvalidTask):
        async with presence:
            pass


def test_sampler_sees_work_of_one_core_since_the_sample_before() -> None:
    sample = load_sampler()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass

    usage = sample()

    assert 1 < usage.cpu_percent <= 100 * (os.cpu_count() or 1) * 1.5
    assert usage.resident_bytes > 10_000_000


async def test_agent_whose_broker_does_not_answer_lets_its_lease_end_and_is_back_when_it_does() -> None:
    registry, status = MemoryRegistry(), [AgentStatus.IDLE]
    described = make_registration()

    async def leased() -> bool:
        record = await registry.get(described.agent_id)
        return record is not None and record.lease_ms > 0

    async with Heartbeat(registry, described, lambda: Load(status[0]), beat_seconds=0.02, lease_seconds=0.2):
        before = await leased()
        status[0] = AgentStatus.OFFLINE
        told = []
        while (record := await registry.get(described.agent_id)) is not None:
            told.append(record.load.status)
            await asyncio.sleep(0.01)
        status[0] = AgentStatus.BUSY
        await eventually(leased)

    assert before
    assert told[-1] is AgentStatus.OFFLINE, "it says so as long as it is known"


async def test_word_that_the_broker_does_not_answer_ends_a_long_lease_soon() -> None:
    registry, status = MemoryRegistry(), [AgentStatus.IDLE]
    described = make_registration()

    async def soon() -> bool:
        record = await registry.get(described.agent_id)
        return record is None or record.lease_ms <= 1_500

    async with Heartbeat(registry, described, lambda: Load(status[0]), beat_seconds=0.02, lease_seconds=60):
        before = await soon()
        status[0] = AgentStatus.OFFLINE
        await eventually(soon)

    assert not before


async def test_heartbeat_is_overdue_while_the_registry_is_away_which_is_asked_again_soon() -> None:
    registry = MemoryRegistry()

    async with make_presence(registry) as presence:
        await eventually(lambda: presence.known)
        registry.failing = True
        await eventually(lambda: presence.lag_seconds > 0.2)
        registry.failing = False

        await eventually(lambda: presence.lag_seconds < 0.1)

    registry = MemoryRegistry()
    registry.failing = True

    async with make_presence(registry, beat_seconds=600):
        registry.failing = False

        await eventually(lambda: known(registry))
