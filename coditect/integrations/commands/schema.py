"""The file of command agents: its fields, which say what to run for which capability, and how it is checked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from coditect.agent.declaration import MOST_QUEUED, size_bytes
from coditect.errors import InputError, InvalidTask, SetupError
from coditect.model.capability import LONGEST_SECONDS
from coditect.model.duration import seconds
from coditect.wire.json import dumps

LONGEST_ARGUMENT_BYTES = 128 * 1024 - 1
"""Linux's own bound of one argument."""
_PIECE = re.compile(r"\{input((?:\.[A-Za-z0-9_-]+)*)\}")
_END_OF_OPTIONS = "--"


@dataclass(frozen=True, slots=True)
class InputTemplate:
    """A text with placeholders, such as `{input.file}`, for fields of a task's input.

    Raises:
        InputError: when it has a NUL.
    """

    text: str

    def __post_init__(self) -> None:
        if "\0" in self.text:
            raise InputError("An argument of a command has no NUL", given=self.text[:200], fix="leave the NUL out")

    @property
    def begins_with_field(self) -> bool:
        """True when the text begins with a field of the input, so that the input decides the first character."""
        return _PIECE.match(self.text) is not None

    @property
    def has_fields(self) -> bool:
        """True when the text has a field, which the task's input fills in."""
        return _PIECE.search(self.text) is not None

    def fill(self, value: Any) -> str:
        """Return the text with the input's fields in place of placeholders: texts as they are, other values as JSON.

        Raises:
            InvalidTask: when a field is missing or has a NUL, or the text is longer than an argument may be.
        """
        filled = _PIECE.sub(lambda found: _field(value, found[1]), self.text)
        if "\0" in filled:
            raise InvalidTask("An argument of a command has no NUL", template=self.text, fix="leave the NUL out")
        if len(filled.encode()) > LONGEST_ARGUMENT_BYTES:
            fix = "let the command read its input from stdin"
            raise InvalidTask("An argument of a command is too long", template=self.text, fix=fix)
        return filled


def _field(document: Any, path: str) -> str:
    value, at = document, "input"
    for name in path.split(".")[1:]:
        at += f".{name}"
        if not isinstance(value, Mapping) or name not in value:
            raise InvalidTask(
                "The input lacks a field that the command needs", field=at, fix="submit it with the field"
            )
        value = value[name]
    text = value if isinstance(value, str) else dumps(value).decode()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTask("A field of the input is no text that UTF-8 has", field=at) from error
    return text


def filled_arguments(templates: tuple[InputTemplate, ...], value: Any) -> tuple[str, ...]:
    """Return the arguments of a command, filled from an input; refuse a value that would be read as an option.

    Raises:
        InvalidTask: when the input does not fit, or a value would be read as an option.
    """
    arguments: list[str] = []
    for template in templates:
        filled = template.fill(value)
        if template.begins_with_field and filled.startswith("-") and _END_OF_OPTIONS not in arguments:
            fix = "submit another value; the command's author may put -- before it"
            raise InvalidTask("A value must not look like an option", template=template.text, fix=fix)
        arguments.append(filled)
    return tuple(arguments)


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")


def _words(value: Any) -> Any:
    """Split a command that is given as one text into its arguments, by a shell's rules of quoting alone."""
    return shlex.split(value) if isinstance(value, str) else value


def _template(text: str) -> str:
    try:
        InputTemplate(text)
    except InputError as error:
        raise ValueError(str(error)) from error
    return text


def _span(value: Any) -> Any:
    try:
        return seconds(value)
    except InputError as error:
        raise ValueError(str(error)) from error


def _below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("a path below the workspace, such as out/result.json")
    return path


def _variable(name: str) -> str:
    if _VARIABLE.fullmatch(name) is None:
        raise ValueError("the name of a variable, or its beginning with a * such as LC_*")
    return name


Template = Annotated[str, AfterValidator(_template)]
Seconds = Annotated[float, BeforeValidator(_span)]
Bytes = Annotated[int, BeforeValidator(size_bytes)]
Variable = Annotated[str, AfterValidator(_variable)]
ExitCode = Annotated[int, Field(ge=1, le=255)]
Keys = Annotated[str, Field(pattern=r"^[^.\s]+(\.[^.\s]+)*$", max_length=200)]
"""Keys of JSON objects, with dots: `usage.cost`."""


class _CommandPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class InputBy(StrEnum):
    """The way in which a command gets a task's input."""

    STDIN = "stdin"
    ARGUMENTS = "arguments"


class ResultFormat(StrEnum):
    """The form of a command's result: one JSON value, the last object of many lines, or text."""

    JSON = "json"
    LINES = "lines"
    TEXT = "text"


class WorkspaceFields(_CommandPart):
    """The folder in which a command works: empty, or a worktree of a git repository."""

    repository: str | None = None
    """The folder of a git repository on the agent's machine; a worktree of it is made for each attempt."""
    revision: Template = "HEAD"
    """The branch, tag or commit to check out, such as `main` or `{input.branch}`."""


class ResultFields(_CommandPart):
    """The result of a command: where it is, and what in it is the value, the failure and the cost."""

    format: ResultFormat = ResultFormat.JSON
    """`json`: one JSON value. `lines`: the last line that begins a JSON object. `text`: without newlines at its end."""
    file: Annotated[str, AfterValidator(_below)] | None = None
    """The file with the result, below the workspace; by default it is stdout."""
    value: Keys | None = None
    """The keys of the value in the result, such as `structured_output`; by default it is the whole result."""
    failed: Keys | None = None
    """The keys of a field that is true when the command failed in spite of its exit code 0, such as `is_error`."""
    cost: Keys | None = None
    """The keys of a number in the result, or in the last line that has it: the cost, such as `total_cost_usd`."""


class ExitFields(_CommandPart):
    """The meaning of a command's exit codes; after any other code, or a signal, the task may be tried again."""

    failed: list[ExitCode] = []
    """Codes after which there is no further attempt."""
    retryable: list[ExitCode] = [75]
    """Codes after which the task is tried again, as the retry policy has it."""
    rejected: list[ExitCode] = [64, 65]
    """Codes by which the command refuses the input: no further attempt, and the error says so."""

    @model_validator(mode="after")
    def _once(self) -> ExitFields:
        codes = [*self.failed, *self.retryable, *self.rejected]
        if twice := sorted({code for code in codes if codes.count(code) > 1}):
            raise ValueError(f"an exit code has one meaning: {twice}")
        return self


class LimitFields(_CommandPart):
    """The limits of one run of a command."""

    time: Seconds = Field(default=300.0, gt=0, le=LONGEST_SECONDS)
    """The longest run, such as `5m`; its processes are then ended. Above ten minutes the tasks must be durable."""
    grace: Seconds = Field(default=2.0, ge=0, le=30)
    """The time between SIGTERM and SIGKILL, at a cancel or when the time is over; the attempt ends after 5 s of it."""
    memory: Bytes | None = Field(default=None, ge=1_000_000)
    """The data that each process of it may hold (`RLIMIT_DATA`), such as `1GB`; by default there is no limit."""
    output: Bytes = Field(default=1_000_000, ge=1_000, le=1_000_000_000)
    """What it may write to stdout and stderr together, or to its result's file, such as `1MB`."""


class CommandFields(_CommandPart):
    """A capability in a command file, with the command that does the capability's tasks."""

    command: Annotated[list[Template], BeforeValidator(_words), Field(min_length=1, max_length=1_000)]
    """The program and its arguments, as a list or as one text; there is no shell. `{input.field}` is filled in."""
    description: str = Field(default="", max_length=10_000)
    """What the capability does, for people and for models that choose by it."""
    tags: list[str] = []
    """Words by which it is found."""
    input: InputBy = InputBy.STDIN
    """`stdin`: the input comes as JSON on stdin. `arguments`: by the command's arguments alone; stdin is empty."""
    input_schema: dict[str, Any] = {}
    """The JSON Schema of the input; an input that does not fit is rejected. Needs the extra `programs`."""
    output_schema: dict[str, Any] = {}
    """The JSON Schema of the value, for the registry."""
    workspace: WorkspaceFields = WorkspaceFields()
    """The folder in which it works."""
    result: ResultFields = ResultFields()
    """Where the task's value is read from after the command, such as its stdout or a file."""
    exit_codes: ExitFields = ExitFields()
    """What its exit codes mean."""
    limits: LimitFields = LimitFields()
    """The most time, memory and output of one command."""
    environment: list[Variable] = []
    """Variables of the agent that it gets, beside PATH, LANG, LC_* and TZ; secrets are hidden in what it reports."""
    attempts: int = Field(default=3, ge=1, le=1_000)
    """The number of attempts, the first one included."""
    cost: float = Field(default=1.0, ge=0)
    """The estimated cost of a task, for the registry."""
    max_queued: int | None = Field(default=None, ge=1, le=MOST_QUEUED)
    """The number of waiting tasks from which the broker refuses more."""

    @model_validator(mode="after")
    def _program(self) -> CommandFields:
        if InputTemplate(self.command[0]).has_fields or not self.command[0]:
            raise ValueError("the program itself is no field of the input")
        return self


class CommandFile(_CommandPart):
    """A command agent: its name, and its capabilities."""

    name: str = "commands"
    """The agent's name: lower-case letters, digits, - and _."""
    version: str = "0.0.0"
    """The agent's version."""
    description: str = ""
    """What the agent is for."""
    tags: list[str] = []
    """Words by which the agent is found."""
    slots: int = Field(default=4, ge=1, le=1_000)
    """The number of commands that run at once."""
    capabilities: dict[str, CommandFields] = Field(min_length=1, max_length=200)
    """The capabilities by their names."""


_MOST_TOLD = 5


def checked_commands(document: Any, **facts: object) -> CommandFile:
    """Check the parsed content of a command file, and return it as a `CommandFile`.

    Raises:
        SetupError: when a field is wrong; the error has the first five of them, and the facts.
    """
    try:
        return CommandFile.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in found[:_MOST_TOLD]]
        fix = "see docs/programs.md for the fields of a file of commands"
        raise SetupError("The command is declared wrongly", **facts, problems=problems, fix=fix) from error
