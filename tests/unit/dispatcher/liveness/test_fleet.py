"""The fleet is read by what changed: a look at it costs what is new or late, not the whole registry."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from dispatcher.liveness import fleet as fleet_module
from dispatcher.liveness.fleet import Fleet, slots_of
from tests.unit.registry.samples import IDLE, make_registration

LEASE_SECONDS = 3.0


class Counting(MemoryRegistry):
    """Counts the records that it gives away."""

    def __init__(self) -> None:
        self.time = 0.0
        super().__init__(now=lambda: self.time)
        self.records = 0

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        found = await super().find(search)
        self.records += len(found)
        return found

    async def get(self, agent_id: AgentId) -> AgentRecord | None:
        self.records += 1
        return await super().get(agent_id)

    async def beat(self, number: int, load: Load = IDLE) -> None:
        await self.renew(agent(number), load, lease_seconds=LEASE_SECONDS)

    async def join(self, number: int) -> None:
        registration = replace(make_registration(), agent_id=agent(number))
        await self.register(registration, IDLE, lease_seconds=LEASE_SECONDS)


def agent(number: int) -> AgentId:
    return AgentId(f"agent-{number:04}")


@pytest.mark.parametrize("size", [10, 400])
async def test_a_fleet_that_beats_is_read_once_and_then_by_what_changes(size: int) -> None:
    registry = Counting()
    fleet = Fleet(registry)
    for number in range(size):
        await registry.join(number)
    assert len(await fleet.look()) == size
    registry.records = 0

    for _ in range(20):
        registry.time += 0.5
        for number in range(size):
            await registry.beat(number)
        assert len(await fleet.look()) == size
    await registry.join(size)
    await registry.deregister(agent(0))

    assert [record.agent_id for record in await fleet.look()] == [agent(number) for number in range(1, size + 1)]
    assert registry.records == 1


async def test_one_that_was_cut_off_is_read_anew_until_it_is_not() -> None:
    registry = Counting()
    fleet = Fleet(registry)
    await registry.join(1)
    await registry.beat(1, Load(AgentStatus.OFFLINE))
    told = [one.load.status for one in await fleet.look()]
    for load in (Load(AgentStatus.OFFLINE), IDLE, IDLE):
        await registry.beat(1, load)
        told += [one.load.status for one in await fleet.look()]

    assert told == [AgentStatus.OFFLINE] * 2 + [AgentStatus.IDLE] * 2
    assert registry.records == 3


async def test_one_that_beats_late_is_read_anew_and_seen_to_drain() -> None:
    registry = Counting()
    fleet = Fleet(registry)
    await registry.join(1)
    await fleet.look()
    await registry.beat(1, Load(AgentStatus.DRAINING))
    registry.time += 1.5

    (record,) = await fleet.look()

    assert record.load.status is AgentStatus.DRAINING


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["join", "beat", "leave", "look", "wipe"]), st.integers(0, 5)), max_size=60))
async def test_a_look_sees_who_the_registry_lists(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fleet_module, "FEW", 2)
        registry = Counting()
        fleet = Fleet(registry)
        for step, number in steps:
            registry.time += 0.3
            match step:
                case "join":
                    await registry.join(number)
                case "beat":
                    await registry.beat(number)
                case "leave":
                    await registry.deregister(agent(number))
                case "wipe":
                    registry.wipe()
            seen = [(one.agent_id, one.registration, one.lease_ms) for one in await fleet.look()]
            assert seen == [(one.agent_id, one.registration, one.lease_ms) for one in await registry.find(Search())]


async def test_each_look_tells_the_slots_of_the_living_by_capability() -> None:
    told: list[Counter[str]] = []
    registry = Counting()
    fleet = Fleet(registry, on_look=lambda records: told.append(slots_of(records)))
    await registry.join(1)
    await fleet.look()
    await registry.join(2)
    await fleet.look()
    registry.wipe()
    await fleet.look()

    slots, names = make_registration().slots, [offer.name for offer in make_registration().capabilities]
    assert names
    assert told == [dict.fromkeys(names, slots), dict.fromkeys(names, 2 * slots), {}]
