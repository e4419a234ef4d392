"""What a layer may import: named here one by one, where the import contract names what is forbidden."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dispatcher.layers

FILES = sorted(Path(dispatcher.layers.__file__).parent.glob("*.py"))
ALLOWED = (
    "__future__",
    "collections.abc",
    "dataclasses",
    "enum",
    "hashlib",
    "typing",
    "pydantic_core",
    "coditect.errors",
    "coditect.model",
    "dispatcher.layers",
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
