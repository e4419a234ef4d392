"""A markdown agent as a file: front matter between lines of `---`, and below it what a model is told to do."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from coditect.errors import CoditectError, InvalidWorkflow, SetupError

log = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024
MOST_FILES = 200
_FENCE = re.compile(r"[ \t]*---[ \t]*")
_PLAIN_WITH_COLON = re.compile(r"""^(\w+:[ \t]+)([^\s"'|>\[{&*!#%@`].*:[ \t].*?)[ \t]*$""", re.MULTILINE)
_TOOL = re.compile(r"[^\s,(]+(?:\([^)]*\))?")
"""A name in a list of tools, such as `text.count`, or `Bash(git log:*)` of other assistants."""


def tool_name(capability: str) -> str:
    """Return the name by which a model knows a capability: with underscores for dots, and at most 64 characters."""
    return capability.replace(".", "_")[:64]


class MarkdownAgent(BaseModel):
    """The front matter and the text of one file; fields that only other assistants know are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)
    """The name, from which the capability has its own."""
    description: str = Field(min_length=1, max_length=4_000)
    """What the agent is for; the registry shows it."""
    tools: tuple[str, ...] = ()
    """The capabilities that the model may call: a list, or names with commas or blanks between."""
    model: str | None = None
    """The model; none, or `inherit`, for that of the settings."""
    instructions: str = ""
    """The text below the front matter, which the model gets first."""

    @field_validator("tools", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return tuple(_TOOL.findall(given)) if isinstance(given, str) else given or ()

    @field_validator("tools")
    @classmethod
    def _each_by_its_name(cls, tools: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse tools that would have the same name for a model, since a call could reach only one of them."""
        for name, count in Counter(map(tool_name, dict.fromkeys(tools))).items():
            if count > 1:
                raise ValueError(f"{count} of them have the name {name} for a model; leave all but one out")
        return tools

    @field_validator("model", mode="before")
    @classmethod
    def _own(cls, given: Any) -> Any:
        return None if given == "inherit" else given


def read_folder(folder: Path) -> list[MarkdownAgent]:
    """Read the markdown agents of the `*.md` files in a folder and the folders below it, in order of the paths.

    A file that is no markdown agent, such as a README, is left out and logged with the reason, and so is the later of
    two with one name.

    Raises:
        SetupError: when there is no such folder, it has too many files, or no file is an agent; it has the reasons.
    """
    if not folder.is_dir():
        raise SetupError("There is no such folder", path=str(folder)[:200], fix="name a folder of *.md files")
    try:
        paths = sorted(path for path in folder.rglob("*.[mM][dD]") if not _is_hidden(path.relative_to(folder)))
    except OSError as error:
        raise SetupError("The folder cannot be read", path=str(folder)[:200], reason=str(error)[:200]) from error
    if len(paths) > MOST_FILES:
        fix = "name a folder of *.md files with front matter"
        raise SetupError("A folder of markdown agents has 1 to 200 files", path=str(folder), files=len(paths), fix=fix)
    found: dict[str, MarkdownAgent] = {}
    problems = list[str]()
    for path in paths:
        try:
            agent = read_agent(_text(path), path=str(path))
            if agent.name in found:
                raise SetupError("Another file has an agent of this name", name=agent.name, path=str(path))
            found[agent.name] = agent
        except SetupError as error:
            problems.append(str(error))
            log.warning("A file is left out: it is no markdown agent", extra={"path": str(path), "reason": str(error)})
    if not found:
        fix = "name a folder of *.md files with front matter"
        raise SetupError("No file of the folder is a markdown agent", path=str(folder), problems=problems[:5], fix=fix)
    return list(found.values())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_agent(text: str, *, path: str = "") -> MarkdownAgent:
    """Read one markdown agent from the text of its file.

    A byte order mark, empty lines before the front matter and blanks around its `---` are ignored.

    Raises:
        SetupError: when it has no front matter, or a field is missing or wrong; the error says which.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    begin = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    first = "".join(lines[begin : begin + 1])
    if _FENCE.fullmatch(first) is None:
        fix = "begin with the lines: ---, name: NAME, description: TEXT, ---"
        raise SetupError("A markdown agent begins with front matter", path=path, first_line=first[:100], fix=fix)
    end = next((number for number in range(begin + 1, len(lines)) if _FENCE.fullmatch(lines[number])), None)
    if end is None:
        raise SetupError("The front matter has no end", path=path, fix="put a line --- below the fields")
    try:
        values = _fields("\n" * (begin + 1) + "\n".join(lines[begin + 1 : end]))
        if not isinstance(values, dict):
            raise SetupError("The front matter has no fields", path=path, fix="name: NAME, description: TEXT")
        return MarkdownAgent.model_validate({**values, "instructions": "\n".join(lines[end + 1 :]).strip()})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5]]
        raise SetupError("The front matter is wrong", path=path, problems=problems, fix="mend these fields") from error
    except SetupError:
        raise
    except CoditectError as error:
        raise SetupError("The front matter is no YAML", path=path, reason=str(error)) from error


def _fields(front_matter: str) -> Any:
    """Return the values of front matter; a plain text may have a colon and a blank, as other assistants write it.

    Raises:
        InvalidWorkflow: when it is no YAML; with the line.
    """
    from coditect.workflow.documents.file import read_values  # noqa: PLC0415 - an optional dependency

    try:
        return read_values(front_matter)
    except InvalidWorkflow:
        quoted = _PLAIN_WITH_COLON.sub(lambda found: found[1] + json.dumps(found[2]), front_matter)
        return read_values(quoted)


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # a folder, or a pipe: to read one without a writer waits for ever
            raise SetupError("A markdown agent is a regular file", path=str(path))
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise SetupError("A markdown agent is too large", path=str(path), most_bytes=MOST_BYTES)
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8"
        raise SetupError("A markdown agent is no UTF-8", path=str(path), reason=str(error), fix=fix) from error
    except OSError as error:
        raise SetupError("A markdown agent cannot be read", path=str(path), reason=str(error)) from error
