"""The fleet is read by what changed, and its roster says who is overdue."""

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
from dispatcher.liveness.monitor import EARLY_PING_SECONDS, MONITOR_PAUSED_SECONDS, MOST_GONE, SUSPECT_SECONDS, Roster
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


async def test_one_that_was_cut_off_or_beats_late_is_read_anew() -> None:
    registry = Counting()
    fleet = Fleet(registry)
    await registry.join(1)
    await registry.beat(1, Load(AgentStatus.OFFLINE))
    told = [one.load.status for one in await fleet.look()]
    for load in (Load(AgentStatus.OFFLINE), IDLE, IDLE):
        await registry.beat(1, load)
        told += [one.load.status for one in await fleet.look()]
    read = registry.records
    await registry.beat(1, Load(AgentStatus.DRAINING))
    registry.time += 1.5
    told += [one.load.status for one in await fleet.look()]

    assert told == [AgentStatus.OFFLINE] * 2 + [AgentStatus.IDLE] * 2 + [AgentStatus.DRAINING]
    assert read == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["join", "beat", "leave", "look", "wipe"]), st.integers(0, 5)), max_size=60))
async def test_a_look_sees_who_the_registry_lists(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fleet_module, "MAX_SINGLE_READS", 2)
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


AGENT = make_registration().agent_id


def record(left_seconds: float, *, status: AgentStatus = AgentStatus.IDLE) -> AgentRecord:
    return AgentRecord(make_registration(), Load(status), round(left_seconds * 1_000))


def overdue(roster: Roster, now: float) -> list[AgentId]:
    return [entry.agent for entry in roster.overdue(now)]


@pytest.mark.parametrize(
    ("lease_seconds", "early", "late"),
    [(LEASE_SECONDS, 3.0 - EARLY_PING_SECONDS - 0.01, 3.0 - EARLY_PING_SECONDS), (0.5, 0.2, 0.3)],
    ids=["usual", "short"],
)
def test_agent_is_overdue_once_shortly_before_its_lease_ends(lease_seconds: float, early: float, late: float) -> None:
    roster = Roster()
    roster.note([record(lease_seconds)], 10.0)
    for seconds in (0.1, 0.15, 0.2) if lease_seconds < 1 else (0.5, 1.0, 1.5):
        roster.note([], 10.0 + seconds)
    assert overdue(roster, 10.0 + early) == []
    assert overdue(roster, 10.0 + late) == [AGENT]
    (entry,) = roster.overdue(20.0)
    entry.examined = True
    assert roster.overdue(20.0) == []


def test_first_look_and_the_first_after_a_pause_grant_everybody_a_full_lease() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    roster.note([record(0.2)], 10.5)

    roster.note([], 10.5 + MONITOR_PAUSED_SECONDS + 0.1)

    assert overdue(roster, 12.1 + LEASE_SECONDS - EARLY_PING_SECONDS - 0.01) == []
    assert overdue(roster, 12.1 + LEASE_SECONDS) == [AGENT]


def test_who_was_struck_is_greeted_once_when_it_is_back() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    roster.strike(AGENT, 14.0)
    assert roster.note([record(0)], 15.0) == [], "its lease has ended"
    assert (len(roster), overdue(roster, 20.0)) == (0, [])
    assert roster.note([record(LEASE_SECONDS)], 20.0) == [AGENT]
    assert roster.note([record(LEASE_SECONDS)], 20.5) == []


def test_dead_agent_in_doubt_is_asked_at_once_and_greeted_when_it_is_listed_again() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    roster.strike(AGENT, 14.0)
    assert roster.proved_at(AGENT) == 14.0

    roster.doubt(AGENT, 20.0)

    assert (roster.is_gone(AGENT), overdue(roster, 20.0)) == (False, [AGENT])
    roster.strike(AGENT, 20.0)
    assert (roster.proved_at(AGENT), roster.last_seen(AGENT)) == (20.0, None)
    roster.doubt(AGENT, 21.0)
    assert roster.note([record(LEASE_SECONDS)], 22.0) == [AGENT]
    assert roster.note([record(LEASE_SECONDS)], 22.5) == []


def test_the_last_sign_of_life_is_known_only_of_agents_that_the_registry_listed() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    roster.note([record(LEASE_SECONDS)], 11.0)
    roster.suspect([AgentId("stranger")], 12.0)
    assert roster.last_seen(AGENT) is None

    roster.strike(AGENT, 14.0)
    roster.strike(AgentId("stranger"), 15.0)

    assert (roster.last_seen(AGENT), roster.last_seen(AgentId("stranger"))) == (11.0, None)


def test_the_gone_are_remembered_in_bounds() -> None:
    roster = Roster()
    for number in range(MOST_GONE + 10):
        roster.strike(AgentId(f"a-{number}"), 1.0)
    first = replace(make_registration(), agent_id=AgentId("a-0"))
    last = replace(make_registration(), agent_id=AgentId(f"a-{MOST_GONE + 9}"))

    back = roster.note([AgentRecord(one, Load(), 3_000) for one in (first, last)], 2.0)

    assert back == [last.agent_id]


@given(
    beats=st.lists(st.floats(0.05, 1.4), min_size=1, max_size=30),
    looks=st.lists(st.floats(0.05, 4.0), min_size=1, max_size=60),
    missing=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_agent_that_beats_is_never_near_its_end(beats: list[float], looks: list[float], missing: list[bool]) -> None:
    """Looks come at any pace, the registry forgets at will: absent for less than a lease, nobody is past it."""
    roster, now, beaten, seen = Roster(), 0.0, 0.0, 0.0
    pace = iter(beats * 1_000)
    for look, forgets in zip(looks, missing, strict=False):
        now += look
        while beaten + (beat := next(pace)) <= now:
            beaten += beat
        listed = not forgets and now - beaten < LEASE_SECONDS
        roster.note([record(LEASE_SECONDS - (now - beaten))] if listed else [], now)
        seen = now if listed or look > MONITOR_PAUSED_SECONDS else seen

        past = [entry for entry in roster.overdue(now) if entry.lapses_at <= now]
        assert not past or now - seen >= LEASE_SECONDS - 1.45


def test_suspect_is_examined_after_a_short_lease_and_only_if_it_is_not_known() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)

    roster.suspect([AGENT, "left-behind"], 10.0)
    roster.note([record(LEASE_SECONDS)], 11.0)

    examined_at = 10.0 + SUSPECT_SECONDS - EARLY_PING_SECONDS
    assert overdue(roster, examined_at - 0.01) == []
    assert overdue(roster, examined_at) == ["left-behind"]
    (entry,) = roster.overdue(examined_at)
    assert not entry.listed
    roster.forget(entry.agent)
    assert overdue(roster, examined_at) == []


def test_suspect_that_is_dead_already_or_is_listed_later_is_none() -> None:
    roster = Roster()
    roster.suspect([AGENT], 10.0)
    roster.note([record(LEASE_SECONDS)], 11.0)
    assert [entry.listed for entry in roster.overdue(14.0)] == [True]

    roster.strike(AGENT, 15.0)
    roster.suspect([AGENT], 15.0)

    assert len(roster) == 0
