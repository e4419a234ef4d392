from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.programs.tally import Tally, reached, span_seconds, total


def test_total_is_over_all_processes(tmp_path: Path) -> None:
    one, other = Tally(tmp_path / "1"), Tally(tmp_path / "2")

    for tally in (one, one, other):
        tally.add()

    assert total(tmp_path) == 3
    assert span_seconds(tmp_path) > 0


def test_nothing_executed_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "not-yet-written").touch()
    Tally(tmp_path / "1")

    assert total(tmp_path) == 0
    assert span_seconds(tmp_path) == 0.0


async def test_reached_returns_when_enough_are_executed_and_gives_up_in_time(tmp_path: Path) -> None:
    Tally(tmp_path / "1").add()

    await reached(tmp_path, 1, seconds=5)
    with pytest.raises(TimeoutError):
        await reached(tmp_path, 2, seconds=0.01)
