"""The arguments of a command, filled with fields of the task's input; no value can add an argument or start an option.

`{input}` and `{input.repo}` stand for the input or a field of it. Each element of the list stays one argument, whatever
is in the value: there is no shell. An argument that begins with a field must not begin with `-` when it is filled,
unless the argument `--` stands before it. Other braces are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coditect.errors import InputError, InvalidTask
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

    def fill(self, given: Any) -> str:
        """Return the text with the input's fields in place of placeholders: texts as they are, other values as JSON.

        Raises:
            InvalidTask: when a field is missing or has a NUL, or the text is longer than an argument may be.
        """
        filled = _PIECE.sub(lambda found: _field(given, found[1]), self.text)
        if "\0" in filled:
            raise InvalidTask("An argument of a command has no NUL", template=self.text, fix="leave the NUL out")
        if len(filled.encode()) > LONGEST_ARGUMENT_BYTES:
            fix = "let the command read its input from stdin"
            raise InvalidTask("An argument of a command is too long", template=self.text, fix=fix)
        return filled


def _field(given: Any, path: str) -> str:
    value, at = given, "input"
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


def filled_arguments(templates: tuple[InputTemplate, ...], given: Any) -> tuple[str, ...]:
    """Return the arguments of a command, filled from an input; refuse a value that would be read as an option.

    Raises:
        InvalidTask: when the input does not fit, or a value would be read as an option.
    """
    arguments: list[str] = []
    for template in templates:
        filled = template.fill(given)
        if template.begins_with_field and filled.startswith("-") and _END_OF_OPTIONS not in arguments:
            fix = "submit another value; the command's author may put -- before it"
            raise InvalidTask("A value must not look like an option", template=template.text, fix=fix)
        arguments.append(filled)
    return tuple(arguments)
