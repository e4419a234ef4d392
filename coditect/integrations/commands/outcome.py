"""The judgement of a command's end: its value, or the error by which the attempt fails."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coditect.errors import CoditectError, InvalidTask
from coditect.integrations.commands.failures import (
    CommandFailed,
    CommandMissing,
    CommandTroubled,
    InputRefusedByCommand,
)
from coditect.integrations.commands.running import CommandEnd
from coditect.integrations.commands.schema import CommandFields, ResultFormat
from coditect.wire.json import loads

HIDDEN = "[hidden]"
SHORTEST_SECRET = 6


@dataclass(frozen=True, slots=True)
class CommandValue:
    """The value that a command returned, and its cost if the command reported one."""

    value: Any
    cost: float | None


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Return a text with `[hidden]` in place of each secret that the command was given."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def at_keys(value: Any, keys: str) -> Any:
    """Return the field of a JSON value at a dotted path, such as `usage.cost`; None when there is none."""
    for name in keys.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


class Judge:
    """The rules that turn the end of one capability's command into a value or an error."""

    def __init__(self, fields: CommandFields) -> None:
        self._fields = fields
        self._program = fields.command[0]

    def value(self, end: CommandEnd, folder: Path, lines: Iterable[Any], secrets: tuple[str, ...]) -> CommandValue:
        """Return a command's value and any cost; `lines` are the JSON objects that it wrote by line, the newest last.

        Raises:
            CommandMissing: when it could not be started.
            CommandFailed: when it failed for good.
            InputRefusedByCommand: when it refused the input.
            CommandTroubled: when it may succeed another time; retryable.
        """
        complaint = hidden(end.complaint, secrets)
        if end.errno:
            reason = os.strerror(end.errno)
            fix = "install it on the agent's machine, or give its whole path"
            raise CommandMissing("The command cannot be started", program=self._program, reason=reason, fix=fix)
        if end.code:
            raise self._failure(end.code, complaint)
        listed = list(lines)
        found = self._result(end, folder, listed, complaint)
        result = self._fields.result
        if result.failed is not None and at_keys(found, result.failed):
            said = hidden(str(found), secrets)[:500]
            raise CommandTroubled("The command's result says that it failed", result=said, complaint=complaint)
        cost = None if result.cost is None else _cost([*listed, found], result.cost)
        if result.value is None:
            return CommandValue(found, cost)
        value = at_keys(found, result.value)
        if value is None:
            raise CommandTroubled("The command's result has no such field", field=result.value, complaint=complaint)
        return CommandValue(value, cost)

    def _failure(self, code: int, complaint: str) -> CoditectError:
        codes = self._fields.exit_codes
        if code in codes.rejected:
            return InputRefusedByCommand("The command refuses the input", exit_code=code, complaint=complaint)
        if code in codes.failed:
            return CommandFailed("The command failed", exit_code=code, complaint=complaint)
        if code < 0:
            return CommandTroubled("The command was ended by a signal", signal=-code, complaint=complaint)
        return CommandTroubled("The command failed", exit_code=code, complaint=complaint)

    def _result(self, end: CommandEnd, folder: Path, lines: list[Any], complaint: str) -> Any:
        fields = self._fields.result
        text = end.stdout if fields.file is None else self._file(folder, fields.file, complaint)
        if fields.format is ResultFormat.TEXT:
            return text.decode(errors="replace").strip()
        try:
            if fields.format is ResultFormat.LINES:
                return _last_object(text, lines if fields.file is None else [])
            return loads(text)
        except InvalidTask as error:
            start = text[:200].decode(errors="replace")
            fix = "let it write one JSON value, or set `result.format`"
            raise CommandTroubled(
                "The command ended well and gave no result", output=start, complaint=complaint, fix=fix
            ) from error

    def _file(self, folder: Path, name: str, complaint: str) -> bytes:
        """Read the result's file: a regular one inside of the workspace, and no larger than the output may be."""
        path = folder / name
        try:
            if not path.resolve(strict=True).is_relative_to(folder.resolve()):
                raise CommandFailed("The result's file lies outside of the workspace", file=name)
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            told = "The command ended well and wrote no result's file"
            raise CommandTroubled(told, file=name, reason=str(error.strerror), complaint=complaint) from error
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CommandFailed("The result's file is no regular file", file=name)
            text = file.read(self._fields.limits.output + 1)
        if len(text) > self._fields.limits.output:
            raise CommandFailed("The result's file is too large", most_bytes=self._fields.limits.output, file=name)
        return text


def _last_object(text: bytes, lines: list[Any]) -> Any:
    """Return the last JSON object that a command wrote: of the parsed lines, else of the output's text."""
    if lines:
        return lines[-1]
    for line in reversed(text.splitlines()):
        if line.startswith(b"{"):
            return loads(line)
    raise InvalidTask("No line is a JSON object")


def _cost(objects: list[Any], keys: str) -> float | None:
    """Return the cost at a dotted path, from the last of a command's JSON objects that has a valid one; else None."""
    for one in reversed(objects):
        cost = at_keys(one, keys)
        if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost < 1e12:
            return float(cost)
    return None
