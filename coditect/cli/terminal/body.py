"""Reads arguments of the command line: JSON given directly, as a file, or on stdin, and labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from coditect.errors import InputError, InvalidTask, TooLarge
from coditect.wire.json import check_text
from coditect.wire.tasks import MAX_BODY_BYTES


def read_body(argument: str, *, binary: bool = False) -> bytes:
    """Return a command's argument as bytes: its text, the file of `@file`, or stdin for `-`; only JSON unless `binary`.

    `binary` takes bytes of any kind.

    Raises:
        InvalidTask: when the text is not JSON, or the file cannot be read.
        TooLarge: when a file, or stdin, is over the inline limit.
    """
    if argument == "-":
        body = _read_most(sys.stdin.buffer)
    elif argument.startswith("@"):
        path = Path(argument[1:])
        try:
            with path.open("rb") as file:
                body = _read_most(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidTask("The file of the body cannot be read", path=path, reason=reason) from error
    else:
        body = argument.encode(errors="surrogateescape")  # as the bytes that were given
    if not binary:
        _check_json(body)
    return body


def _check_json(body: bytes) -> None:
    try:
        check_text(body)
    except InvalidTask as error:
        error.facts["fix"] = """write a text in quotes of JSON inside of the shell's: '"Ada"'; a file is @FILE"""
        raise


def labels_of(options: Sequence[str] | None) -> dict[str, str]:
    """Return the labels that the options `--label NAME=VALUE` give.

    Raises:
        InputError: when an option has no value, or a name is given twice.
    """
    labels: dict[str, str] = {}
    for option in options or ():
        name, equals, value = option.partition("=")
        if not equals or name in labels:
            raise InputError("A label is a name and its value, once", given=option[:80], fix="--label team=x")
        labels[name] = value
    return labels


def _read_most(file: BinaryIO) -> bytes:
    body = file.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge("The body is over the inline limit", limit=MAX_BODY_BYTES)
    return body
