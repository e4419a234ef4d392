from __future__ import annotations

from benchmarks.runner import PARTS
from tests.docs.pages import section, table_rows
from tests.servers import ROOT


def test_every_part_is_described_in_the_order_in_which_it_runs() -> None:
    rows = table_rows(section(ROOT / "benchmarks" / "README.md", "What is measured"))

    assert [row[0].strip("`") for row in rows if row[0]] == list(PARTS)
