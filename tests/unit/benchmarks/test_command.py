from __future__ import annotations

from typing import cast

import pytest

from benchmarks.__main__ import parser
from benchmarks.report import Report
from benchmarks.runner import PARTS, USUAL, found_by
from benchmarks.size import QUICK, Size
from benchmarks.stage import ProgramFailed, Stage
from benchmarks.verdict import Findings


def test_only_names_parts_and_may_be_repeated() -> None:
    chosen = parser().parse_args(["--quick", "--only", "throughput", "--only", "footprint"])

    assert chosen.only == ["throughput", "footprint"]
    assert chosen.quick
    assert set(chosen.only) <= set(PARTS)


def test_every_part_but_that_on_foundationdb_is_run_by_default() -> None:
    assert parser().parse_args([]).only is None
    assert set(PARTS) - set(USUAL) == {"workflow-stores"}


async def test_part_that_fails_says_so_and_fails_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_stage: Stage, _size: Size) -> Findings:
        error = ProgramFailed("agent-1: exit code 1")
        error.add_note("the end of a log")
        raise error

    monkeypatch.setitem(PARTS, "throughput", fails)

    found = await found_by("throughput", cast(Stage, None), QUICK)

    assert found.notes == ("could not be measured: ProgramFailed: agent-1: exit code 1\nthe end of a log",)
    assert not Report("", "", {}, [found]).ok
