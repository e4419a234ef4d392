"""The verdicts on locks follow from the measured times."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.parts.locks import LockTimes, figures, verdicts

GOOD = LockTimes(
    round_trips=(2.0, 2.0), locks=(3.0, 4.0, 5.0), redis_locks=(0.5,), turns=(1.0, 19.0), late_writes=500, accepted=0
)


def test_a_lock_may_cost_two_round_trips_and_a_turn_less_than_its_bound() -> None:
    bad = replace(GOOD, locks=(4.2,), turns=(20.0,), accepted=1)

    assert verdicts(GOOD)[0].measured == 2.0
    assert [one.ok for one in verdicts(GOOD)] == [True, True, True]
    assert [one.ok for one in verdicts(bad)] == [False, False, False]
    assert len(figures(GOOD)) == 8
