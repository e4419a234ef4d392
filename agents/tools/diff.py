"""The parser of unified diffs, and the writer that puts each changed code fragment into a file for ruff to check.

Each hunk becomes a file of its own below the workspace, with its lines at their real numbers (blank lines before them).
A hunk that starts inside a block gets openers (``if 1:``) in those blank lines, so that most fragments parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from agents.tools.sources import MAX_FILES, SourceFile
from coditect.errors import InputError

_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_MAX_LINE = 100_000


@dataclass(frozen=True, slots=True)
class Hunk:
    """A hunk of a diff, as the new file has it: its lines, and which of them the change added."""

    file: str
    start: int
    lines: tuple[str, ...]
    added: frozenset[int]
    """The numbers of the added lines in the new file, from 1."""

    removed: int
    """The number of lines that the change removed."""

    whole: bool = False
    """Whether the hunk is the whole file, because the file is new."""


def parse_diff(text: str) -> list[Hunk]:
    """Return the hunks of a unified diff (git's or plain), in order; deletions of whole files are left out.

    Raises:
        InputError: not retryable; the text is no unified diff, or it is cut off.
    """
    hunks = list(_hunks(text))
    if not hunks:
        raise InputError("this is no unified diff; give the output of `git diff` or `diff -u`")
    return [hunk for hunk in hunks if hunk.file and hunk.lines]


def changed_lines(text: str) -> int:
    """Return how many lines a unified diff adds or removes, whatever the lines look like.

    Raises:
        InputError: not retryable; the text is cut off, or damaged.
    """
    return sum(len(hunk.added) + hunk.removed for hunk in _hunks(text))


def _hunks(text: str) -> Iterator[Hunk]:
    lines = text.split("\n")  # not splitlines: a form feed ends no line of a diff
    file, new, at = "", False, 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if line.startswith("--- "):
            new = line[4:].startswith("/dev/null")
        elif line.startswith("+++ "):
            file = _file_name(line[4:])
        elif header := _HUNK.match(line):
            hunk, at = _read_hunk(lines, at, header=header, file=file)
            yield replace(hunk, whole=new and hunk.start == 1)


def write_hunks(hunks: list[Hunk], workspace: Path) -> list[SourceFile]:
    """Write each hunk with added Python lines into a file of its own in the workspace; return the files for review.

    Raises:
        InputError: not retryable; there are too many hunks.
    """
    sources = []
    for number, hunk in enumerate(hunks):
        if not hunk.file.endswith((".py", ".pyi")) or not hunk.added:
            continue
        path = workspace / "hunks" / f"{number:05}" / hunk.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*_padding(hunk), *hunk.lines, ""]), encoding="utf-8")
        sources.append(SourceFile(hunk.file, path, hunk.added, hunk.whole))
    if len(sources) > MAX_FILES:
        raise InputError("too many hunks for one task; split the diff", limit=MAX_FILES)
    return sources


def _file_name(field: str) -> str:
    name = field.partition("\t")[0].strip().strip('"')
    if name == "/dev/null":
        return ""
    name = name.removeprefix("b/")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\x00" in name:
        raise InputError("a file name in the diff leaves the repository; give names relative to its root", file=name)
    return name


def _read_hunk(lines: list[str], at: int, *, header: re.Match[str], file: str) -> tuple[Hunk, int]:
    """Parse the hunk whose lines begin at index `at`; return it with the index of the next line.

    Raises:
        InputError: not retryable; the hunk is cut off or damaged.
    """
    start, old, new = int(header[3]), int(header[2] or 1), int(header[4] or 1)
    if start + new > _MAX_LINE:
        raise InputError("a line number in the diff is too large", line=start, limit=_MAX_LINE)
    kept: list[str] = []
    added: set[int] = set()
    removed = 0
    while old > 0 or new > 0:
        if at >= len(lines):
            raise InputError("the diff ends inside a hunk; give all of it", line=at)
        mark, text = lines[at][:1], lines[at][1:]
        at += 1
        if mark == "\\":
            continue
        if mark not in {"+", "-", " ", ""}:
            raise InputError("a line of the diff has no mark; give it unchanged", line=at)
        if mark == "+":
            added.add(start + len(kept))
        if mark != "-":
            kept.append(text)
        removed += mark == "-"
        old -= mark != "+"
        new -= mark != "-"
    return Hunk(file, start, tuple(kept), frozenset(added), removed), at


def _padding(hunk: Hunk) -> list[str]:
    openers = list(_openers(hunk.lines))
    blank = max(0, hunk.start - 1 - len(openers))
    return ["" for _ in range(blank)] + openers[: max(0, hunk.start - 1)]


def _openers(lines: tuple[str, ...]) -> Iterator[str]:
    """Yield block openers, such as `if 1:`, that let an indented fragment parse, outermost first."""
    shallowest: dict[int, str] = {}
    least: int | None = None
    for line in lines:
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        if not text or text.startswith("#") or (least is not None and indent >= least):
            continue
        shallowest[indent] = text
        least = indent
    if not shallowest or max(shallowest) == 0:
        return
    for indent in sorted({0, *shallowest} - {max(shallowest)}):
        ends_try = shallowest.get(indent, "").startswith(("except", "finally"))
        yield " " * indent + ("try:" if ends_try else "if 1:")
