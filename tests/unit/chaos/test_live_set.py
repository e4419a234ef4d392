"""What is judged of the registry, and what is not."""

from __future__ import annotations

from collections.abc import Collection

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex
from chaos.checks.live_set import live_set
from chaos.history import HistoryEntry, Type
from tests.unit.chaos.histories import indexed, look, span

WELL, AWAY = ("one", "two"), ("two",)


def judged(
    *looks: tuple[float, Collection[str] | None, Collection[str]], faults: Collection[HistoryEntry] = ()
) -> CheckResult:
    """Of looks: when, who was listed, who was at work."""
    entries = [entry for t, listed, living in looks for entry in look(t, listed, running=living, at_work=living)]
    return live_set(indexed(*entries, *faults))


def test_stopped_agent_may_be_listed_until_its_lease_has_lapsed_and_not_longer() -> None:
    stopped = [(float(t), WELL, AWAY) for t in range(1, 4)]
    before, late = (0.0, WELL, WELL), (5.0, WELL, AWAY)

    assert judged(before, *stopped, (4.0, WELL, AWAY)).passed
    assert judged(before, *stopped, (4.0, WELL, AWAY), late).violations == ("one is listed and does not live at 5.0",)
    assert judged(before, *stopped, (4.0, WELL, AWAY), (5.0, AWAY, AWAY)).passed


def test_agent_that_goes_on_for_a_moment_between_two_looks_is_listed_rightly() -> None:
    stood = [(float(t), AWAY, AWAY) for t in range(5)]
    moments = [
        HistoryEntry(5.2, "chaos", type_, "stop", "one", {"kind": "agent.stop"}) for type_ in (Type.OK, Type.INVOKE)
    ]
    looks = [*stood, (5.0, AWAY, AWAY), *((float(t), WELL, AWAY) for t in range(6, 11))]

    assert judged(*looks, faults=moments).violations == ("one is listed and does not live at 10.0",)
    assert judged(*looks[:-1], faults=moments).passed


def test_agent_that_goes_on_is_to_be_listed_3_s_later() -> None:
    first, back = (0.0, AWAY, AWAY), [(float(t), AWAY, WELL) for t in range(1, 6)]

    assert judged(first, *back[:4]).passed
    assert judged(first, *back).violations == ("one lives and is not listed at 5.0",)


def test_agent_on_its_way_is_neither_missed_nor_taken_for_dead() -> None:
    entries = [entry for t in range(8) for entry in look(float(t), ("new",), running=("new",), at_work=())]

    check = live_set(HistoryIndex(entries))

    assert (check.checked, check.violations) == (4, ())


def test_agent_that_is_parted_from_redis_is_not_missed_until_it_is_back_for_a_while() -> None:
    parted = span(1.0, 5.5, "chaos", "part", "one")
    missed = [(float(t), AWAY, WELL) for t in range(3, 11)]

    assert judged((0.0, WELL, WELL), (1.0, WELL, WELL), (2.0, WELL, WELL), *missed[:7], faults=parted).passed
    assert judged(*missed, faults=parted).violations == ("one lives and is not listed at 10.0",)


def test_nothing_is_judged_soon_after_redis_was_away_or_when_nobody_looked() -> None:
    wrong = [(float(t), (), WELL) for t in range(10)]
    wiped = HistoryEntry(5.5, "chaos", Type.OK, "wipe", "redis", {"kind": "redis.wipe"})
    without_an_answer = [(t, None, living) for t, _, living in wrong]

    assert judged(*wrong).checked == 6
    assert judged(*wrong, faults=[wiped]).checked == 2
    assert judged(*wrong[:3], *wrong[5:9]).checked == 0
    assert judged(*((1.3 * t, listed, living) for t, listed, living in wrong)).checked == 0  # a busy machine
    assert judged(*without_an_answer).checked == 0


def test_agents_are_not_missed_while_the_broker_is_silent() -> None:
    """An agent that gets no answer cannot know that all others get none; one silent queue excuses nobody."""
    looks = [(float(t), WELL if t < 6 else AWAY, WELL) for t in range(7)]
    silent, queue = (span(3.1, 5.9, "chaos", "stop", "broker", kind=kind) for kind in ("broker.stop", "queue.stop"))

    assert judged(*looks, faults=silent).passed
    assert judged(*looks, faults=queue).violations == ("one lives and is not listed at 6.0",)
