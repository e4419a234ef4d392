"""Reads the JSON arguments of the command line, given directly, as a file, or on stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from coditect.errors import InvalidTask, TooLarge
from coditect.wire.json import loads
from coditect.wire.tasks import MAX_BODY_BYTES


def read_body(argument: str, *, binary: bool = False) -> bytes:
    """Return the JSON text of an argument: the argument itself, the file of `@file`, or stdin for `-`.

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
        loads(body)
    return body


def _read_most(file: BinaryIO) -> bytes:
    body = file.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge("The body is over the inline limit", limit=MAX_BODY_BYTES)
    return body
