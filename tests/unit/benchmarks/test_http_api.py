"""The verdicts on the HTTP API and on its streams of events follow from the measured times."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.parts import event_streams
from benchmarks.parts.event_streams import StreamDelays
from benchmarks.parts.http_api import ApiTimes, ReadRate, figures, verdicts

GOOD = ApiTimes(round_trips=(1.0, 1.0), requests=(3.9, 4.0), reads={"agents": ReadRate(500.0, 1_500.0)})


def test_a_request_may_cost_two_round_trips_and_two_milliseconds_and_reads_have_a_bound() -> None:
    bad = replace(GOOD, requests=(4.1,), reads={"agents": ReadRate(500.0, 999.0)})

    assert verdicts(GOOD)[0].target == 4.0
    assert [one.ok for one in verdicts(GOOD)] == [True, True]
    assert [one.ok for one in verdicts(bad)] == [False, False]
    assert len(figures(GOOD)) == 5


def test_one_event_of_a_hundred_may_be_late() -> None:
    good = StreamDelays((*[10.0] * 99, 900.0))
    bad = StreamDelays((*[10.0] * 98, 250.0, 900.0))

    assert [one.ok for found in (good, bad) for one in event_streams.verdicts(found)] == [True, False]
    assert [one.value for one in event_streams.figures(good)] == [10.0, 900.0]
