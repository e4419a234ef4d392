from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load
from dispatcher.liveness.roster import EARLY_SECONDS, MOST_GONE, PAUSE_SECONDS, SUSPECT_SECONDS, Roster
from tests.unit.registry.samples import make_registration

LEASE_SECONDS = 3.0
AGENT = make_registration().agent_id


def record(left_seconds: float, *, status: AgentStatus = AgentStatus.IDLE) -> AgentRecord:
    return AgentRecord(make_registration(), Load(status), round(left_seconds * 1_000))


def overdue(roster: Roster, now: float) -> list[AgentId]:
    return [entry.agent for entry in roster.overdue(now)]


def test_agent_is_overdue_shortly_before_its_lease_ends_and_not_earlier() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    for now in (10.5, 11.0, 11.5):
        roster.note([], now)

    assert overdue(roster, 13.0 - EARLY_SECONDS - 0.01) == []
    assert overdue(roster, 13.0 - EARLY_SECONDS) == [AGENT]


def test_short_lease_is_not_asked_after_all_the_time() -> None:
    roster = Roster()
    roster.note([record(0.5)], 10.0)

    assert overdue(roster, 10.2) == []
    assert overdue(roster, 10.3) == [AGENT]


def test_first_look_and_the_first_after_a_pause_grant_everybody_a_full_lease() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    roster.note([record(0.2)], 10.5)

    roster.note([], 10.5 + PAUSE_SECONDS + 0.1)

    assert overdue(roster, 12.1 + LEASE_SECONDS - EARLY_SECONDS - 0.01) == []
    assert overdue(roster, 12.1 + LEASE_SECONDS) == [AGENT]


def test_who_is_examined_is_not_examined_again() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    (entry,) = roster.overdue(20.0)
    entry.examined = True

    assert roster.overdue(20.0) == []


def test_who_was_struck_is_greeted_once_when_it_is_back() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)
    roster.strike(AGENT, 14.0)
    assert (len(roster), overdue(roster, 20.0)) == (0, [])

    assert roster.note([record(LEASE_SECONDS)], 20.0) == [AGENT]
    assert roster.note([record(LEASE_SECONDS)], 20.5) == []


def test_record_whose_lease_has_ended_is_no_sign_of_life() -> None:
    roster = Roster()
    roster.strike(AGENT, 14.0)

    assert roster.note([record(0)], 15.0) == []
    assert len(roster) == 0


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
def test_agent_that_beats_is_never_near_its_end_whatever_is_seen_of_it(
    beats: list[float], looks: list[float], missing: list[bool]
) -> None:
    """Looks come at any pace, the registry forgets at will: absent for less than a lease, nobody is past it."""
    roster, now, beaten, seen = Roster(), 0.0, 0.0, 0.0
    pace = iter(beats * 1_000)
    for look, forgets in zip(looks, missing, strict=False):
        now += look
        while beaten + (beat := next(pace)) <= now:
            beaten += beat
        listed = not forgets and now - beaten < LEASE_SECONDS
        roster.note([record(LEASE_SECONDS - (now - beaten))] if listed else [], now)
        seen = now if listed or look > PAUSE_SECONDS else seen

        past = [entry for entry in roster.overdue(now) if entry.lapses_at <= now]
        assert not past or now - seen >= LEASE_SECONDS - 1.45


def test_suspect_is_examined_after_a_short_lease_and_only_if_it_is_not_known() -> None:
    roster = Roster()
    roster.note([record(LEASE_SECONDS)], 10.0)

    roster.suspect([AGENT, "left-behind"], 10.0)
    roster.note([record(LEASE_SECONDS)], 11.0)

    examined_at = 10.0 + SUSPECT_SECONDS - EARLY_SECONDS
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
