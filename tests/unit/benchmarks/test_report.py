from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Report, as_json, as_markdown, table, write
from benchmarks.verdict import Bound, Figure, Findings, Verdict


def report(*verdicts: Verdict) -> Report:
    found = Findings("throughput", verdicts, (Figure("tasks per second", 3123.456, "/s"),), {"rounds": [1, 2]})
    return Report("20260101T000000Z", "python -m benchmarks", {"python": "CPython 3.11.7"}, [found])


MET = Verdict("ratio", 1.23456, Bound.AT_LEAST, 0.9, "x")
MISSED = Verdict("wait", 12.0, Bound.AT_MOST, 10.0, "ms")


@pytest.mark.parametrize(
    ("bound", "measured", "ok"),
    [
        (Bound.AT_LEAST, 10.0, True),
        (Bound.AT_LEAST, 9.9, False),
        (Bound.AT_MOST, 10.0, True),
        (Bound.AT_MOST, 10.1, False),
        (Bound.BELOW, 9.9, True),
        (Bound.BELOW, 10.0, False),
    ],
)
def test_verdict_compares_as_its_bound_says(bound: Bound, measured: float, ok: bool) -> None:
    assert Verdict("any", measured, bound, 10.0).ok is ok


def test_table_columns_stand_under_each_other() -> None:
    assert table(("a", "long title"), [("first", "x"), ("b", "y")]) == (
        "| a     | long title |\n| ----- | ---------- |\n| first | x          |\n| b     | y          |\n"
    )


def test_markdown_names_command_machine_and_verdicts() -> None:
    text = as_markdown(report(MET, MISSED))

    assert "command: `python -m benchmarks`" in text
    assert "- python: CPython 3.11.7" in text
    assert "| ratio  | at least 0.9 x | 1.235 x  | ok     |" in text
    assert "| wait   | at most 10 ms  | 12 ms    | MISSED |" in text
    assert "| tasks per second | 3,123 /s |" in text


def test_markdown_of_a_part_without_targets_has_no_table_of_them() -> None:
    assert "wanted" not in as_markdown(report())


def test_report_is_ok_when_every_verdict_is() -> None:
    assert report(MET).ok
    assert not report(MET, MISSED).ok


def test_written_json_holds_verdicts_figures_and_raw_values(tmp_path: Path) -> None:
    document, text = write(report(MET, MISSED), tmp_path / "results")

    found = json.loads(document.read_text())
    assert found == as_json(report(MET, MISSED))
    assert found["ok"] is False
    assert found["parts"]["throughput"]["verdicts"][0] == {
        "name": "ratio",
        "measured": 1.23456,
        "bound": "at least",
        "target": 0.9,
        "unit": "x",
        "ok": True,
    }
    assert found["parts"]["throughput"]["raw"] == {"rounds": [1, 2]}
    assert text.read_text() == as_markdown(report(MET, MISSED))
