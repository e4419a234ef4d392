from __future__ import annotations

from pathlib import Path

import pytest

from agents.tools.review import find_smells
from agents.tools.sources import SourceFile


def smells(folder: Path, text: str, name: str = "module.py") -> set[tuple[int, str]]:
    file = folder / "source.py"
    file.write_text(text)
    found = find_smells(SourceFile(name, file))
    assert found is not None
    return {(finding.line, finding.rule) for finding in found}


DOC = '"""M."""\n'


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("def _f():\n" + "    x = 1\n" * 51, "long-function"),
        ("def _f(a, b, c, d, e, *, f, g): ...\n", "many-parameters"),
        ("def _f(a):\n" + "    if a:\n        a = 1\n" * 10, "complex-function"),
        ("def _f(a={}): ...\n", "mutable-default"),
        ("async def _f(*, a=dict()): ...\n", "mutable-default"),
        ("def f(): ...\n", "missing-docstring"),
        ("class C: ...\n", "missing-docstring"),
    ],
)
def test_smell_is_found_at_the_line_of_the_definition(code: str, rule: str, project: Path) -> None:
    assert smells(project, DOC + code) == {(2, rule)}


@pytest.mark.parametrize(
    "code",
    [
        "def _f():\n" + "    x = 1\n" * 50,
        "class _C:\n    def f(self, a, b, c, d, e, g): ...\n",
        "def _f(a=(), b=None): ...\n",
        "def _f():\n    try:\n        g()\n    except Exception:\n        raise\n",
        "def _f():\n    try:\n        g()\n    except ValueError:\n        pass\n",
        "def _outer():\n    def inner(a):\n" + "        if a:\n            a = 1\n" * 9,
    ],
)
def test_code_within_the_bounds_has_no_smell(code: str, project: Path) -> None:
    assert smells(project, DOC + code) == set()


@pytest.mark.parametrize("caught", ["except:", "except BaseException:", "except (ValueError, Exception):"])
def test_broad_handler_that_drops_the_exception_is_an_error(caught: str, project: Path) -> None:
    assert smells(project, f"{DOC}try:\n    g()\n{caught}\n    ...\n") == {(4, "swallowed-exception")}


def test_tests_need_no_docstrings(project: Path) -> None:
    assert smells(project, "def test_it(): ...\n", name="tests/unit/test_it.py") == set()


def test_source_with_a_null_byte_is_reported_as_unreadable(project: Path) -> None:
    file = project / "null.py"
    file.write_bytes(b"x = '\x00'\n")

    assert find_smells(SourceFile("null.py", file)) is None
