"""The tables of the store's page are what the code does."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from coditect.errors import CoditectError
from dispatcher.store import errors, limits
from dispatcher.store.fdb import FdbSettings
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite.database import WAIT_SECONDS
from tests.docs.pages import section, table_rows
from tests.servers import ROOT

PAGE = ROOT / "docs" / "store.md"


def test_the_limits_are_those_that_are_enforced() -> None:
    rows = table_rows(section(PAGE, "Limits"))[-4:]
    numbers = [int(re.sub(r"\D", "", row[1])) for row in rows]
    named = [re.findall(r"`([A-Z]\w+)`", row[2])[0] for row in rows]

    assert numbers == [
        limits.TRANSACTION_SECONDS,
        limits.TRANSACTION_BYTES,
        limits.KEY_BYTES,
        limits.VALUE_BYTES,
    ]
    assert all(issubclass(getattr(errors, name), CoditectError) for name in named)


def test_the_parameters_are_those_that_the_backends_take() -> None:
    rows = [row for row in table_rows(section(PAGE, "Settings")) if "`" in row[0]]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    defaults = {row[0].strip("`"): row[2] for row in rows}
    of_sqlite = set(inspect.signature(SqliteDatabase).parameters) - {"path", "connecting", "on_wait"}

    assert documented == of_sqlite | {field.name for field in fields(FdbSettings)}
    assert float(defaults["run_seconds"]) == limits.RUN_SECONDS == FdbSettings().run_seconds
    assert float(defaults["wait_seconds"]) == WAIT_SECONDS
    assert int(defaults["threads"]) == FdbSettings().threads


def test_every_error_is_in_the_tree_of_its_module() -> None:
    tree = inspect.getdoc(errors) or ""
    own = [name for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]

    assert [name for name in own if f"── {name} " not in tree] == []
