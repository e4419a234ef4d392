"""Each row of the page has a command that is run, by the page's own test or by the row's, and a test that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.docs.pages import TRIED, Row, blocks, lines_of, rows, section, table_rows
from tests.servers import ROOT

ROWS = rows()


def test_rows_are_numbered_and_none_is_left_out() -> None:
    above, _, below = TRIED.read_text(encoding="utf-8").partition("\n## Differently\n")

    assert below
    assert [row.number for row in ROWS] == [*range(1, len(ROWS) + 1)]
    assert len(ROWS) == sum(line.startswith("| ") for line in above.splitlines()) - above.count("| # |")


def test_every_row_that_does_it_differently_says_why() -> None:
    told = [int(cells[0]) for cells in table_rows(section(TRIED, "Differently"))]

    assert told == [row.number for row in ROWS if "(#differently)" in row.what]


def test_the_test_of_each_row_exists() -> None:
    missing = [
        row.test
        for row in ROWS
        if not re.search(rf"^ *(async )?def {row.test.partition('::')[2] or 'test_'}", _text(row), re.MULTILINE)
    ]

    assert not missing


def test_a_command_that_the_page_does_not_run_is_run_by_the_test_of_its_row() -> None:
    assert [(row.number, row.command) for row in ROWS if row.run_by_its_test and not _is_run(row)] == []


def _text(row: Row) -> str:
    return (ROOT / "tests" / row.test.partition("::")[0]).read_text(encoding="utf-8")


def _is_run(row: Row) -> bool:
    file, _, name = row.test.partition("::")
    run = False
    match shlex.split(row.command):
        case ["python", "-m", "tests.docs.follow", target]:
            page, _, anchor = target.partition("#")
            shown = lines_of(ROOT / page, anchor)
            run = ROOT / page == _page(row) and any(block.runs and block.line in shown for block in blocks(ROOT / page))
        case _ if file == "docs/test_blocks.py":
            run = row.command in "".join(block.text for block in blocks(_page(row)) if block.runs)
        case ["pytest", "-v", *paths, "-k", words]:
            run = f"tests/{file}" in paths and any(word in name for word in words.split(" or "))
        case ["pytest", "-v", path, *_]:
            run = path in (f"tests/{file}", f"tests/{row.test}")
        case ["make", target, *_]:
            recipe, folder = _recipe(target), str(Path("tests", file).parent)
            run = f"tests/{file}" in recipe or folder in recipe or _runs_module(recipe, _text(row))
        case ["python", "-m", module, *_]:
            run = module in _text(row)
        case ["kubectl", "kustomize", folder, *_]:
            run = (ROOT / folder / "kustomization.yaml").is_file() and '"kubectl", "kustomize"' in _text(row)
        case ["coditect", *words]:
            run = all(word in _text(row) for word in words if not word.isdigit())
    return run


def _page(row: Row) -> Path:
    target: str = re.findall(r"\(([\w./-]+\.md)", row.where)[0]
    return TRIED.parent / target


def _recipe(target: str) -> str:
    """What a target does, with the scripts that it calls."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert found, f"there is no `make {target}`"
    scripts = (ROOT / name for name in re.findall(r"\bscripts/[\w-]+\.sh", found[1]))
    return found[1] + "".join(script.read_text(encoding="utf-8") for script in scripts)


def _runs_module(recipe: str, text: str) -> bool:
    """Whether the test names the module, or the command of `coditect`, that the recipe runs."""
    named = re.findall(r"-m ((?:agents|benchmarks|chaos)[\w.]*)|bin/coditect (\w+)", recipe)
    return any((module or command) in text for module, command in named)
