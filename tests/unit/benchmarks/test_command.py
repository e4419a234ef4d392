from __future__ import annotations

import pytest

from benchmarks.__main__ import parser
from benchmarks.runner import PARTS


def test_only_names_parts_and_may_be_repeated() -> None:
    chosen = parser().parse_args(["--quick", "--only", "throughput", "--only", "footprint"])

    assert chosen.only == ["throughput", "footprint"]
    assert chosen.quick
    assert set(chosen.only) <= set(PARTS)


def test_unknown_part_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["--only", "everything"])

    assert ended.value.code == 2
    assert "everything" in capsys.readouterr().err


def test_every_part_is_run_by_default() -> None:
    assert parser().parse_args([]).only is None
    assert list(PARTS) == ["throughput", "round-trip", "slots", "priorities", "footprint"]
