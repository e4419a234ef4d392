"""The verdict on command agents follows from the measured times."""

from __future__ import annotations

from benchmarks.parts.commands import CommandTimes, bare, figures, verdicts


def test_the_middle_of_what_a_task_takes_longer_is_judged() -> None:
    good = CommandTimes(tasks=(12.0, 17.0, 90.0), bare=(1.0, 2.0, 3.0))
    bad = CommandTimes(tasks=(17.1,), bare=(2.0,))

    assert [(one.ok, one.measured) for one in verdicts(good)] == [(True, 15.0)]
    assert [one.ok for one in verdicts(bad)] == [False]
    assert len(figures(good)) == 4


async def test_the_bare_command_gives_the_input_back() -> None:
    await bare()
