"""The documentation as data: its pages, their blocks, headings and links.

A fenced block may have a mark on the line before it, as an HTML comment that a reader does not see:

``<!-- not run: why -->``       the block is only shown
``<!-- file: NAME -->``         the block is that file: written to the reader's folder, or, below ``examples/``,
                                equal to the file of the repository
``<!-- in the background -->``  each line is a command of its own terminal, left running to the end of the page
``<!-- prints -->``             what the block before it wrote to stdout; ``...`` stands for anything

A command in a row of `TRIED` is a block, too, unless it is one that the row's own test runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.servers import ROOT

RUN_LANGUAGES = frozenset({"python", "bash"})

TRIED = ROOT / "docs" / "phase-6.md"
"""The page whose tables have a command and a test in each row."""

_FENCE = re.compile(r"(`{3,})([\w-]*)\s*")
_MARK = re.compile(r"<!-- (not run|file|in the background|prints)(?:: (.+))? -->")
_HEADING = re.compile(r"(#{1,6}) (.+)")
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_INLINE_CODE = re.compile(r"`[^`]*`")
_TRY = re.compile(r"\| (\d+) \| (.+) \| (.+) \| `([^`]+)` \| `([^`]+)` \|")
_RUN_BY_TESTS = re.compile(r"(make|pytest|python|kubectl|coditect doctor --scorecard)\b")


class Mark(StrEnum):
    """What the line before a block says about it."""

    NONE = ""
    NOT_RUN = "not run"
    FILE = "file"
    BACKGROUND = "in the background"
    PRINTS = "prints"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Of its first line of text, from 1."""
    language: str
    text: str
    mark: Mark = Mark.NONE
    remark: str = ""
    """Behind the colon of the mark: a reason, a file's name."""

    @property
    def place(self) -> str:
        """Where it stands, for a person."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is executed by itself."""
        return self.language in RUN_LANGUAGES and self.mark in (Mark.NONE, Mark.BACKGROUND)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `TRIED`."""

    line: int
    number: int
    what: str
    where: str
    command: str
    test: str
    """Below `tests`: a file, or a test of it."""

    @property
    def run_by_its_test(self) -> bool:
        """Whether the command takes long, or starts servers of its own, or another page has it."""
        return self.test == "docs/test_blocks.py" or _RUN_BY_TESTS.match(self.command) is not None


def rows() -> list[Row]:
    """The rows of `TRIED`, in order."""
    lines = enumerate(TRIED.read_text(encoding="utf-8").splitlines(), 1)
    found = ((line, _TRY.fullmatch(text)) for line, text in lines)
    return [
        Row(line, int(row[1]), row[2], row[3], row[4].replace("\\|", "|"), row[5])
        for line, row in found
        if row is not None
    ]


def pages() -> list[Path]:
    """Every page of prose in the repository."""
    below = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    return sorted([*ROOT.glob("*.md"), *below])


def pages_with_code() -> list[Path]:
    """The pages whose blocks are executed."""
    return [page for page in pages() if any(block.runs for block in blocks(page))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, and the commands of its rows that are run by themselves, in order."""
    tried = [row for row in rows() if not row.run_by_its_test] if page == TRIED else []
    found = [*_blocks(page), *(Block(page, row.line, "bash", row.command) for row in tried)]
    return sorted(found, key=lambda block: block.line)


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.fullmatch(lines[number].strip())
        if opening is None:
            number += 1
            continue
        end = number + 1
        while lines[end].strip() != opening[1]:
            end += 1
        mark, remark = _mark(lines[number - 1] if number else "")
        text = "\n".join(lines[number + 1 : end]) + "\n"
        yield Block(page, number + 2, opening[2], text, mark, remark)
        number = end + 1


def _mark(line: str) -> tuple[Mark, str]:
    found = _MARK.fullmatch(line.strip())
    return (Mark.NONE, "") if found is None else (Mark(found[1]), found[2] or "")


def prose(page: Path) -> list[tuple[int, str]]:
    """The lines outside of fenced blocks, with their numbers from 1."""
    lines: list[tuple[int, str]] = []
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        opening = _FENCE.fullmatch(line.strip())
        if fence:
            fence = "" if line.strip() == fence else fence
        elif opening is not None:
            fence = opening[1]
        else:
            lines.append((number, line))
    return lines


def headings(page: Path) -> list[str]:
    """The titles of a page's sections, without their signs."""
    found = (_HEADING.fullmatch(line.rstrip()) for _, line in prose(page))
    return [heading[2] for heading in found if heading is not None]


def section(page: Path, title: str) -> str:
    """Everything below the heading of this title, down to the next heading of its rank or above."""
    lines = page.read_text(encoding="utf-8").splitlines()
    kept: list[str] = []
    rank = 0
    for line in lines:
        heading = _HEADING.fullmatch(line.rstrip())
        if rank and heading is not None and len(heading[1]) <= rank:
            break
        if rank:
            kept.append(line)
        elif heading is not None and heading[2] == title:
            rank = len(heading[1])
    assert rank, f"{page.name} has no section {title!r}"
    return "\n".join(kept)


def lines_of(page: Path, anchor: str) -> range:
    """The lines of the section that a link with this anchor names; without an anchor, all lines of the page."""
    titles = [(number, _HEADING.fullmatch(line.rstrip())) for number, line in prose(page)]
    found = [(number, len(title[1]), _slug(title[2])) for number, title in titles if title is not None]
    begins = [(number, rank) for number, rank, slug in found if slug == anchor or not anchor]
    assert begins, f"{page.name} has no section #{anchor}"
    first, rank = begins[0]
    return range(first, next((number for number, other, _ in found if number > first and other <= rank), sys.maxsize))


def anchors(page: Path) -> set[str]:
    """What a link to a section of the page may name, by GitHub's rule."""
    found: set[str] = set()
    for title in headings(page):
        slug, number = _slug(title), 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def links(page: Path) -> list[tuple[int, str]]:
    """The targets of the page's links, with their lines."""
    return [
        (number, target) for number, line in prose(page) for target in _LINK.findall(_INLINE_CODE.sub("`code`", line))
    ]


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row in a text, headers and rules left out."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.strip().startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    rules = {number for number, row in enumerate(cells) if all(set(cell) <= set("-: ") for cell in row)}
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]
