"""The verdicts on agents that talk follow from the measured times."""

from __future__ import annotations

from benchmarks.parts.threads import TalkTimes, figures, verdicts

GOOD = TalkTimes(messages=(5.0, 9.0, 50.0), requests=(3.0,), by_hand=(2.0,), look_ups=(1.0, 4.0))
BAD = TalkTimes(messages=(10.0,), requests=(3.1,), by_hand=(2.0,), look_ups=(1.0, 5.0))


def test_each_step_is_judged_by_its_own_bound() -> None:
    assert [one.ok for one in verdicts(GOOD)] == [True, True, True]
    assert [one.ok for one in verdicts(BAD)] == [False, False, False]
    assert verdicts(GOOD)[1].measured == 1.5
    assert len(figures(GOOD)) == 8
