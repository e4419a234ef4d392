"""The sizes that CONTRIBUTING.md names, held by a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("coditect", "dispatcher", "agents", "benchmarks", "examples", "tests")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 50


def _files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def _functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or node.lineno) - node.lineno
            yield node.name, lines - (docstring.count("\n") + 1 if docstring else 0)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    too_long = [f"{name}: {lines}" for name, lines in _functions(ast.parse(text)) if lines > MOST_LINES_OF_A_FUNCTION]

    assert text.count("\n") <= MOST_LINES_OF_A_FILE
    assert not too_long
