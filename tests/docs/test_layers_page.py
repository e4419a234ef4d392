"""The numbers of the layers' page are those of the code."""

from __future__ import annotations

import re

import pytest

import dispatcher.ledger
from dispatcher.ledger import idempotency, values
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import LOOKS_PER_TTL, TTL_MS
from dispatcher.ledger.ownership.shards import STEP_MS
from tests.docs.pages import section, table_rows
from tests.servers import ROOT

PAGE = ROOT / "docs" / "layers.md"
BEHIND_MS = -(-TTL_MS // STEP_MS) * STEP_MS
"""The first step that is not before the TTL."""


def test_the_times_follow_from_the_pace_and_the_ttl() -> None:
    rows = table_rows(section(PAGE, "Shards"))[-4:]

    assert [int(re.sub(r"\D", "", row[1])) for row in rows] == [
        STEP_MS,
        TTL_MS,
        STEP_MS + BEHIND_MS,
        STEP_MS,
    ]
    assert 5 * STEP_MS < TTL_MS
    assert TTL_MS // LOOKS_PER_TTL >= STEP_MS, "steps at their pace count in full"


def test_the_table_names_the_layers_that_there_are() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    there = {path.stem for path in (ROOT / "dispatcher" / "ledger").glob("*.py")}
    there |= {path.stem for path in (ROOT / "dispatcher" / "ledger" / "ownership").glob("*.py")}

    assert dispatcher.ledger.__doc__
    assert set(named) == there - {
        "__init__",
        "unit_of_work",
        "commands",
        "definitions",
        "effects",
        "errors",
        "keyspace",
        "policy",
        "rows",
        "versions",
    }


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        (r"fixed when the store is made, ([\d,]+) by default", shards.DEFAULT_SHARDS),
        (r"are 1 to ([\d,]+) bytes", idempotency.LONGEST_IDEMPOTENCY_KEY_BYTES),
        (r"at most ([\d,]+) bytes, in pieces", values.LARGEST_BYTES),
        (r"in pieces of ([\d,]+);", values.VALUE_PIECE_BYTES),
    ],
)
def test_a_number_in_the_text_is_that_of_the_code(sentence: str, number: int) -> None:
    found = re.search(sentence, PAGE.read_text(encoding="utf-8"))

    assert found
    assert int(found[1].replace(",", "")) == number


def test_a_key_is_remembered_for_seven_days() -> None:
    assert idempotency.KEY_RETENTION_MS == 7 * 24 * 60 * 60 * 1000
    assert leases.LOOKS_PER_TTL == 3, "a third of the TTL"
