"""The sizes and names that CONTRIBUTING.md asks for, held by tests."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("coditect", "dispatcher")
ROOMS = (*PACKAGES, "agents", "benchmarks", "examples", "tests")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 50
MOST_MODULES_OF_A_PACKAGE = 13


def _functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or node.lineno) - node.lineno
            yield node.name, lines - (docstring.count("\n") + 1 if docstring else 0)


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_their_functions_are_short(room: str) -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / room).rglob("*.py")}

    long_files = [name for name, text in texts.items() if text.count("\n") > MOST_LINES_OF_A_FILE]
    long_functions = [
        f"{name}: {function}, {lines} lines"
        for name, text in texts.items()
        for function, lines in _functions(ast.parse(text))
        if lines > MOST_LINES_OF_A_FUNCTION
    ]

    assert texts, "the room was not found"
    assert (long_files, long_functions) == ([], [])


@pytest.mark.parametrize("room", PACKAGES)
def test_a_package_has_about_a_dozen_modules_at_most(room: str) -> None:
    modules = Counter(path.parent for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py")

    assert len(modules) > 20
    assert [str(package) for package, many in modules.items() if many > MOST_MODULES_OF_A_PACKAGE] == []


def test_no_two_classes_of_the_product_share_a_name() -> None:
    names = Counter(
        node.name
        for room in ("coditect", "dispatcher", "agents")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )

    assert len(names) > 1_000
    assert [name for name, times in names.items() if times > 1] == []


def test_wheel_has_every_lua_script() -> None:
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    scripts = {str(path.relative_to(ROOT)) for room in PACKAGES for path in (ROOT / room).rglob("*.lua")}

    assert scripts, "no script was found"
    assert scripts <= packed
