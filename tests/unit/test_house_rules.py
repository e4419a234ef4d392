"""The sizes and names that CONTRIBUTING.md asks for, held by tests."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("coditect", "dispatcher")
ROOMS = (*PACKAGES, "agents", "benchmarks", "chaos", "examples", "tests")
CALLERS = (*PACKAGES, "agents", "benchmarks", "chaos", "docs", "examples")
CALLED_BY_US = {"ABC", "AssertionError", "Exception", "Generic", "NamedTuple", "Protocol", "StrEnum", "str"}
"""Bases of other libraries that call no method of a class."""
PLAIN_DECORATORS = {
    "abstractmethod", "asynccontextmanager", "cached_property", "classmethod", "contextmanager", "overload",
    "property", "staticmethod",
}  # fmt: skip
"""Decorators that register nothing."""
MOST_LINES_OF_A_FILE = 1_000
MOST_LINES_OF_A_FUNCTION = 50


BODIES = ("body", "orelse", "finalbody", "handlers", "cases")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, for which no expression is looked into."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        yield (node := waiting.pop())
        for body in BODIES:
            waiting += getattr(node, body, ())


def _functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in _statements(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or node.lineno) - node.lineno
            yield node.name, lines - (docstring.count("\n") + 1 if docstring else 0)


def _defined(body: list[ast.stmt], ours: Collection[str]) -> Iterator[str]:
    """Names of classes and functions that no decorator registers and no other library calls."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield node.name
            if {ast.unparse(base).partition("[")[0] for base in node.bases} <= {*ours}:
                yield from _defined(node.body, ours)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
            if decorators <= PLAIN_DECORATORS and not node.name.startswith(("__", "pytest_")):
                yield node.name


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_their_functions_are_short(room: str) -> None:
    paths = [*(ROOT / room).rglob("*.py")]

    long_files = [path for path in paths if path.read_bytes().count(b"\n") > MOST_LINES_OF_A_FILE]
    long_functions = [
        f"{path}: {function}, {lines} lines"
        for path in paths
        for function, lines in _functions(_tree(path))
        if lines > MOST_LINES_OF_A_FUNCTION
    ]

    assert paths, "the room was not found"
    assert (long_files, long_functions) == ([], [])


def test_nothing_that_ships_is_kept_by_tests_alone() -> None:
    trees = {path: _tree(path) for room in PACKAGES for path in (ROOT / room).rglob("*.py")}
    own = {node.name for tree in trees.values() for node in _statements(tree) if isinstance(node, ast.ClassDef)}
    shipped = [tree for path, tree in trees.items() if "starter" not in path.relative_to(ROOT).parts]
    names = Counter(name for tree in shipped for name in _defined(tree.body, own | CALLED_BY_US))
    files = [path for room in CALLERS for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".md")]
    texts = [path.read_text("utf-8") for path in (*files, ROOT / "README.md", ROOT / "pyproject.toml")]
    words = Counter(word for text in texts for word in re.findall(r"\w+", text))

    assert len(names) > 3_000
    assert [name for name, times in names.items() if words[name] == times] == []


@pytest.mark.parametrize("word", ["__get__", "__set__", "__set_name__", "redis.call"])
def test_no_python_file_of_the_product_has_descriptors_or_lua(word: str) -> None:
    texts = {path: path.read_text(encoding="utf-8") for room in PACKAGES for path in (ROOT / room).rglob("*.py")}

    assert texts, "the rooms were not found"
    assert [str(path) for path, text in texts.items() if word in text] == []


def test_wheel_has_every_lua_script() -> None:
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    scripts = {str(path.relative_to(ROOT)) for room in PACKAGES for path in (ROOT / room).rglob("*.lua")}

    assert scripts, "no script was found"
    assert scripts <= packed
