"""What a layer may import: named here one by one, where the import contract names what is forbidden."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dispatcher.ledger

LAYERS = Path(dispatcher.ledger.__file__).parent
FILES = sorted(LAYERS.glob("*.py"))
IN_TRANSACTIONS = [*sorted(LAYERS.rglob("*.py")), LAYERS.parent / "shards" / "batch.py"]
FORBIDDEN = {"asyncio", "datetime", "logging", "os", "random", "secrets", "threading", "time"}
"""What acts, or says something else each time."""
ALLOWED = (
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "hashlib",
    "math",
    "typing",
    "pydantic_core",
    "coditect.errors",
    "coditect.model",
    "coditect.wire",
    "coditect.workflow",
    "dispatcher.ledger",
    "dispatcher.store.errors",
    "dispatcher.store.keys",
    "dispatcher.store.limits",
    "dispatcher.store.port",
    "dispatcher.store.transaction",
)


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_layer_imports_the_store_s_port_and_nothing_that_acts(path: Path) -> None:
    others = {name for name in imported(path) if not any(name == one or name.startswith(f"{one}.") for one in ALLOWED)}

    assert not others


@pytest.mark.parametrize("path", IN_TRANSACTIONS, ids=lambda path: path.stem)
def test_what_runs_in_a_transaction_has_no_clock_no_chance_and_no_log(path: Path) -> None:
    assert not imported(path) & FORBIDDEN
