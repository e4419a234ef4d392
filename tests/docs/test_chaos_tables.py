"""The tables of the page on chaos are what the code has."""

from __future__ import annotations

from chaos.checks.invariants import judge
from chaos.faults.schedule import KINDS, STORE_KINDS
from chaos.mutants.table import MUTANTS
from chaos.recorder import POINTS
from tests.docs.pages import section, table_rows
from tests.servers import ROOT

PAGE = ROOT / "docs" / "chaos.md"


def rows(title: str) -> dict[str, str]:
    return {row[0].strip("`"): row[1] for row in table_rows(section(PAGE, title))}


def test_every_fault_is_documented_as_it_is() -> None:
    assert rows("What is broken") == {**KINDS, **STORE_KINDS}


def test_every_invariant_is_documented_as_it_is() -> None:
    assert rows("What is checked") == {one.invariant: one.sentence for one in judge([])}


def test_every_mutant_is_documented_with_what_catches_it() -> None:
    table = table_rows(section(PAGE, "Mutants"))

    written = {row[0].strip("`"): (row[1], row[2]) for row in table}
    assert written == {one.name: (one.breaks, f"{one.caught_by}, seed {one.seed}") for one in MUTANTS.values()}


def test_every_failpoint_is_documented_as_it_is() -> None:
    assert rows("Failpoints") == dict(POINTS)
