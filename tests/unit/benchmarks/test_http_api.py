"""The verdicts on the HTTP API follow from the measured times."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.parts.http_api import ApiTimes, ReadRate, figures, verdicts

GOOD = ApiTimes(round_trips=(1.0, 1.0), requests=(3.9, 4.0), reads={"agents": ReadRate(500.0, 1_500.0)})


def test_a_request_may_cost_two_round_trips_and_two_milliseconds_and_reads_have_a_bound() -> None:
    bad = replace(GOOD, requests=(4.1,), reads={"agents": ReadRate(500.0, 999.0)})

    assert verdicts(GOOD)[0].target == 4.0
    assert [one.ok for one in verdicts(GOOD)] == [True, True]
    assert [one.ok for one in verdicts(bad)] == [False, False]
    assert len(figures(GOOD)) == 5
