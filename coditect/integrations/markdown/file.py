"""A markdown agent as a file: front matter between lines of `---`, and below it what a model is told to do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from coditect.errors import CoditectError, SetupError

MOST_BYTES = 256 * 1024
MOST_FILES = 200
_FENCE = "---"


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
    """The capabilities that the model may call: a list, or names with commas between."""
    model: str | None = None
    """The model; none, or `inherit`, for that of the settings."""
    instructions: str = ""
    """The text below the front matter, which the model gets first."""

    @field_validator("tools", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return [one.strip() for one in given.split(",") if one.strip()] if isinstance(given, str) else given or ()

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
    """Read the markdown agents of a folder's `*.md` files, in order of the files' names.

    Raises:
        SetupError: when the folder has none or too many, a file is none, or two have one name; it names the file.
    """
    try:
        paths = sorted(folder.glob("*.md"))
    except (OSError, ValueError) as error:  # a name that no file system takes
        raise SetupError("There is no such folder", path=str(folder)[:200], reason=str(error)[:200]) from error
    if not 0 < len(paths) <= MOST_FILES:
        fix = "name a folder of *.md files with front matter"
        raise SetupError("A folder of markdown agents has 1 to 200 files", path=str(folder), files=len(paths), fix=fix)
    found: dict[str, MarkdownAgent] = {}
    for path in paths:
        one = read_agent(_text(path), path=str(path))
        if one.name in found:
            raise SetupError("Two markdown agents have one name", name=one.name, path=str(path))
        found[one.name] = one
    return list(found.values())


def read_agent(text: str, *, path: str = "") -> MarkdownAgent:
    """Read one markdown agent from the text of its file.

    Raises:
        SetupError: when it has no front matter, or a field is missing or wrong; the error says which.
    """
    from coditect.workflow.documents.file import read_values  # noqa: PLC0415 - an optional dependency

    head, fence, body = text.removeprefix(f"{_FENCE}\n").partition(f"\n{_FENCE}\n")
    if not text.startswith(f"{_FENCE}\n") or not fence:
        fix = "begin with the lines: ---, name: NAME, description: TEXT, ---"
        raise SetupError("A markdown agent begins with front matter", path=path, fix=fix)
    try:
        values = read_values(head)
        fields = values if isinstance(values, dict) else {}
        return MarkdownAgent.model_validate({**fields, "instructions": body.strip()})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5]]
        raise SetupError("The front matter is wrong", path=path, problems=problems, fix="mend these fields") from error
    except CoditectError as error:
        raise SetupError("The front matter is no YAML", path=path, reason=str(error)) from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise SetupError("A markdown agent is too large", path=str(path), most_bytes=MOST_BYTES)
        return content.decode().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError("A markdown agent cannot be read", path=str(path), reason=str(error)) from error
