"""The search for Python source files and packages at given paths, with bounds on the files' number and size."""

from __future__ import annotations

import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TypeVar

from coditect.errors import InputError

Parsed = TypeVar("Parsed")

MAX_FILES = 2000
MAX_FILE_BYTES = 1_048_576
UNREADABLE = (OSError, SyntaxError, ValueError, RecursionError)
"""The errors of `read_source`, and of a parser of its text."""
_MOST_NAMED = 10
_NOT_OURS = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist", "venv"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A Python source file, or a fragment of one, to review or document."""

    name: str
    """The file's name as reports show it."""

    path: Path
    """The path of the file on disk."""

    lines: frozenset[int] | None = None
    """The line numbers that the request asks about, from 1; None means all lines."""

    whole: bool = True
    """Whether the source is a whole file, and not a fragment with unknown surroundings."""


def find_sources(path: str, globs: Sequence[str]) -> list[SourceFile]:
    """Return the Python files at a path, sorted: the file itself, or the folder's files that match a glob.

    Skipped: hidden folders, environments, build output, links that lead out of the folder.

    Raises:
        InputError: not retryable; nothing is there, nothing matches, or it is too much.
    """
    root = Path(path)
    if root.is_file():
        found = [SourceFile(path, root)]
    elif root.is_dir():
        found = [SourceFile(str(PurePosixPath(path) / file.relative_to(root)), file) for file in _walk(root, globs)]
    else:
        raise InputError("no such file or folder on the agent's machine; give one that the agent can read", path=path)
    if not found:
        raise InputError("no Python file matches; check the path and the globs", path=path, globs=list(globs))
    if len(found) > MAX_FILES:
        raise InputError("too many files for one task; give a subfolder or a narrower glob", path=path, limit=MAX_FILES)
    return found


def find_packages(roots: Sequence[str]) -> list[str]:
    """Return the paths of the Python packages at and below the given folders, sorted.

    A package is a folder with an `__init__.py`; the same folders are skipped as in `find_sources`.

    Raises:
        InputError: not retryable; a folder is not there, or there is no package.
    """
    missing = [root for root in roots if not Path(root).is_dir()]
    if missing:
        raise InputError("no such folder on the agent's machine; give one that the agent can read", paths=missing)
    found = {
        str(PurePosixPath(root) / file.parent.relative_to(root))
        for root in roots
        for file in _walk(Path(root), ["**/__init__.py"])
    }
    if not found:
        raise InputError("no package is there; a package has an __init__.py", paths=list(roots))
    return sorted(found)


def read_source(source: SourceFile) -> str:
    """Return a file's text by its byte order mark or coding line, else as UTF-8; wrong bytes are replaced.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large.
    """
    with source.path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(content).readline)
    except SyntaxError:
        encoding = "utf-8-sig"
    return content.decode(encoding, errors="replace")


def parse_all(
    sources: Sequence[SourceFile], parse: Callable[[SourceFile, str], Parsed]
) -> tuple[list[Parsed], list[str]]:
    """Return the parsed form of each file that is valid Python, and a line with the reason for each other file.

    Raises:
        InputError: not retryable; no file can be read and is valid Python.
    """
    parsed, refused = list[Parsed](), list[str]()
    for source in sources:
        try:
            parsed.append(parse(source, read_source(source)))
        except UNREADABLE as error:
            refused.append(f"{source.name}: {error}")
    if not parsed:
        raise InputError("no file is valid Python", files=refused[:_MOST_NAMED])
    return parsed, refused


def project_of(path: Path, root: Path) -> Path | None:
    """Return the folder of the project that a package or module is part of, at most `root`; None if there is none.

    A project has a pyproject.toml, and its packages beside it or in its folder `src`.
    """
    top = path.resolve() if path.is_dir() else path.resolve().parent
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    near = (top, top.parent, *((top.parent.parent,) if top.parent.name == "src" else ()))
    return next((one for one in near if one.is_relative_to(root) and (one / "pyproject.toml").is_file()), None)


def _walk(root: Path, globs: Sequence[str]) -> Iterator[Path]:
    real_root = root.resolve()
    matches = {file for glob in globs for file in _glob(root, glob)}
    for file in sorted(matches):
        parts = file.relative_to(root).parts
        if any(part.startswith(".") or part in _NOT_OURS for part in parts):
            continue
        if file.is_file() and file.suffix in {".py", ".pyi"} and file.resolve().is_relative_to(real_root):
            yield file


def _glob(root: Path, glob: str) -> Iterator[Path]:
    if not glob or glob.startswith("/") or ".." in PurePosixPath(glob).parts:
        raise InputError("a glob must be relative and stay below the path", glob=glob)
    return root.glob(glob)
