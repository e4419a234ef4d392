"""The catalogue of patterns: the packaged files, and those of folders that a person names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from coditect.errors import InputError, NotFound
from coditect.workflow.documents.file import parse_document
from coditect.workflow.patterns.pattern import WorkflowPattern, check_depth, problems_of

PACKAGED = Path(__file__).parent / "library"
MOST_BYTES = 1_000_000

Catalogue = Mapping[str, WorkflowPattern]


def load_patterns(folders: Iterable[Path] = ()) -> Catalogue:
    """Read the packaged patterns and those of `*.yaml` files in folders, by their names, in order of the names.

    Raises:
        NotFound: when a folder or a file cannot be read.
        InputError: when a file is no pattern, or two files have one name; not retryable.
        InvalidWorkflow: when a file is no YAML, with its line.
    """
    found: dict[str, WorkflowPattern] = {}
    for folder in (PACKAGED, *folders):
        for path in _files(folder):
            one = read_pattern(_content(path), name=str(path))
            if one.pattern in found:
                fix = "give each pattern a name of its own"
                raise InputError("Two patterns have one name", given=one.pattern, path=str(path), fix=fix)
            found[one.pattern] = one
    return dict(sorted(found.items()))


def find_pattern(patterns: Catalogue, name: str) -> WorkflowPattern:
    """Return the pattern of a name from a catalogue; for an unknown name, raise NotFound with the known names.

    Raises:
        NotFound: when no pattern has the name; tells the names there are.
    """
    if name not in patterns:
        raise NotFound("There is no such pattern", given=name, known=list(patterns), fix="see `coditect pattern list`")
    return patterns[name]


def read_pattern(content: bytes, *, name: str = "") -> WorkflowPattern:
    """Read and check the pattern in the bytes of a YAML document; errors about its size or fields name it by `name`.

    Raises:
        InputError: with the places of up to ten problems; not retryable.
        InvalidWorkflow: when the bytes are no YAML, with the line.
    """
    if len(content) > MOST_BYTES:
        raise InputError("A pattern is at most so large", path=name, most_bytes=MOST_BYTES, fix="use fewer nodes")
    document = parse_document(content)
    try:
        pattern = WorkflowPattern.model_validate(document)
    except ValidationError as error:
        fix = "correct it; the fields are in docs/workflow-patterns.md"
        raise InputError("This is no pattern", path=name, problems=problems_of(error), fix=fix) from error
    check_depth(pattern.nodes)
    return pattern


def _files(folder: Path) -> list[Path]:
    try:
        if folder.is_dir():
            return sorted(folder.glob("*.yaml"))
        reason = "it is no folder"
    except (OSError, ValueError) as error:  # a name that no file system takes
        reason = str(error)[:200]
    fix = "name a folder of YAML files"
    raise NotFound("There is no such folder of patterns", path=str(folder)[:200], reason=reason, fix=fix)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise NotFound("There is no such file to read", path=str(path), reason=str(error)) from error
