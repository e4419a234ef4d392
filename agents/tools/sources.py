"""The search for Python source files and packages at given paths, with bounds on the files' number and size.

Paths in requests stay inside the fleet's folder.
"""

from __future__ import annotations

import os
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TypeVar

from coditect.errors import InputError

ROOT = "CODITECT_FLEET_ROOT"
"""The environment variable with the fleet's folder; by default the agent's working folder."""


def fleet_root() -> Path:
    """Return the fleet's folder, with links resolved."""
    return Path(os.environ.get(ROOT) or ".").resolve()


def confined(path: str) -> str:
    """Return a path unchanged if it leads, with links resolved, into the fleet's folder; else raise an error.

    Raises:
        InputError: not retryable; the path leads elsewhere.
    """
    if not Path(path).resolve().is_relative_to(fleet_root()):
        fix = f"give a path in it, or start the agent with {ROOT}=FOLDER"
        raise InputError("the path leads out of the fleet's folder", path=path, fix=fix)
    return path


Parsed = TypeVar("Parsed")

MAX_FILES = 2000
MAX_FILE_BYTES = 1_048_576
UNREADABLE = (OSError, SyntaxError, ValueError, RecursionError)
"""The errors of `read_source`, and of a parser of its text."""
_MOST_NAMED = 10
_NOT_OURS = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist", "venv"})
_NOT_FOR_USERS = frozenset(
    {"tests", "test", "__tests__", "spec", "testdata", "fixtures", "examples", "example", "docs", "benchmarks"}
    | {"vendor", "third_party", "target"}
)


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
    found = list_sources(path, globs)
    if not found:
        raise InputError("no Python file matches; check the path and the globs", path=path, globs=list(globs))
    if len(found) > MAX_FILES:
        raise InputError("too many files for one task; give a subfolder or a narrower glob", path=path, limit=MAX_FILES)
    return found


def list_sources(path: str, globs: Sequence[str], *, for_users: bool = False) -> list[SourceFile]:
    """Return what `find_sources` finds, also if it is nothing or much; `for_users` without tests and vendored code.

    Raises:
        InputError: not retryable; nothing is there.
    """
    root = Path(path)
    if root.is_file():
        return [SourceFile(path, root)]
    if not root.is_dir():
        raise InputError("no such file or folder on the agent's machine; give one that the agent can read", path=path)
    files = _walk(root, globs, for_users=for_users)
    return [SourceFile(str(PurePosixPath(path) / file.relative_to(root)), file) for file in files]


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
        ValueError: the file is too large, or its coding line names a codec that gives no text, such as `rot13`.
    """
    with source.path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(content).readline)
    except SyntaxError:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding, errors="replace")
    except LookupError as error:
        raise ValueError(f"its coding line names {encoding}, which is no encoding of text; write utf-8") from error


def parse_all(
    sources: Sequence[SourceFile], parse: Callable[[SourceFile, str], Parsed], *, needed: bool = True
) -> tuple[list[Parsed], list[str]]:
    """Return the parsed form of each file that is valid Python, and a line with the reason for each other file.

    Raises:
        InputError: not retryable; no file can be read and is valid Python, and one is needed.
    """
    parsed, refused = list[Parsed](), list[str]()
    for source in sources:
        try:
            parsed.append(parse(source, read_source(source)))
        except UNREADABLE as error:
            refused.append(f"{source.name}: {error}")
    if needed and not parsed:
        raise InputError("no file is valid Python", files=refused[:_MOST_NAMED])
    return parsed, refused


def _walk(root: Path, globs: Sequence[str], *, for_users: bool = False) -> Iterator[Path]:
    real_root = root.resolve()
    matches = {file for glob in globs for file in _glob(root, glob)}
    for file in sorted(matches):
        if not is_ours(file.relative_to(root), for_users=for_users):
            continue
        if file.is_file() and file.suffix in {".py", ".pyi"} and file.resolve().is_relative_to(real_root):
            yield file


def is_ours(path: Path, *, for_users: bool = False) -> bool:
    """Tell whether a path below a folder is source of its own: nothing hidden or built; for users, no tests either."""
    hidden = any(part.startswith(".") or part in _NOT_OURS for part in path.parts)
    return not hidden and not (for_users and _NOT_FOR_USERS.intersection(path.parts[:-1]))


def _glob(root: Path, glob: str) -> Iterator[Path]:
    if not glob or glob.startswith("/") or ".." in PurePosixPath(glob).parts:
        raise InputError("a glob must be relative and stay below the path", glob=glob)
    return root.glob(glob)
