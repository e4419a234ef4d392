"""The judgement of a command's end: its value, or the error by which the attempt fails."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
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
from coditect.integrations.commands.running import LONGEST_PROGRESS_BYTES, CommandEnd, bare, end_of, utf_8
from coditect.integrations.commands.schema import CommandFields, ResultFormat
from coditect.wire.json import loads

HIDDEN = "[hidden]"
SHORTEST_SECRET = 6
_PROGRESS_KEYS = frozenset({"progress", "note"})


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

    def value(self, end: CommandEnd, folder: Path, secrets: tuple[str, ...]) -> CommandValue:
        """Return the value that a command wrote to stdout or a file of its folder, and any cost.

        Raises:
            CommandMissing: when it could not be started.
            CommandFailed: when it failed for good.
            InputRefusedByCommand: when it refused the input.
            CommandTroubled: when it may succeed another time; retryable.
        """
        complaint = hidden(end.complaint, secrets)
        if end.errno == errno.E2BIG:
            fix = "let the command read its input from stdin"
            raise InputRefusedByCommand("The arguments of the command are too long", program=self._program, fix=fix)
        if end.errno:
            reason = os.strerror(end.errno)
            fix = "install it on the agent's machine, or give its whole path; make a script executable, with a #! line"
            raise CommandMissing("The command cannot be started", program=self._program, reason=reason, fix=fix)
        if end.code:
            raise self._failure(end.code, complaint or hidden(end_of(end.stdout), secrets))
        result = self._fields.result
        text = end.stdout if result.file is None else self._file(folder, result.file, complaint)
        found = self._result(text, complaint)
        if result.failed is not None and at_keys(found, result.failed):
            said = hidden(str(found), secrets)[:500]
            raise CommandTroubled("The command's result says that it failed", result=said, complaint=complaint)
        cost = None if result.cost is None else _cost(self._objects(found, text, end.stdout), result.cost)
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

    def _result(self, text: bytes, complaint: str) -> Any:
        form = self._fields.result.format
        if form is ResultFormat.TEXT:
            return utf_8(text).decode(errors="replace").strip()
        found = bare(text) if form is ResultFormat.JSON else _result_line(text)
        try:
            return loads(found)
        except InvalidTask as error:
            raise CommandTroubled(
                "The command ended well and gave no result",
                reason=error.facts.get("reason"),
                output=(found or text)[:200].decode(errors="replace"),
                complaint=complaint,
                fix="let it write its result as JSON in UTF-8, and other output to stderr, or set `result.format`",
            ) from error

    def _objects(self, found: Any, *texts: bytes) -> Iterator[Any]:
        """Yield the result, then, if it is one of many lines, the JSON objects of the texts, newest first."""
        yield found
        if self._fields.result.format is ResultFormat.LINES:
            for line in (line for text in texts for line in _json_lines(text)):
                try:
                    yield loads(line)
                except InvalidTask:
                    continue

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
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CommandFailed("The result's file is no regular file", file=name)
        with os.fdopen(fd, "rb") as file:
            text = file.read(self._fields.limits.output + 1)
        if len(text) > self._fields.limits.output:
            raise CommandFailed("The result's file is too large", most_bytes=self._fields.limits.output, file=name)
        return text


def _json_lines(text: bytes) -> Iterator[bytes]:
    """Yield the lines of an output that begin with a brace, the last one first."""
    return (line for line in map(bare, reversed(bare(text).splitlines())) if line.startswith(b"{"))


def _result_line(text: bytes) -> bytes:
    """Return the last line that begins with a brace and states more than progress; empty if there is none.

    The line may be no JSON: an earlier line must not stand in for a broken result.
    """
    return next((line for line in _json_lines(text) if not _is_progress(line)), b"")


def _is_progress(line: bytes) -> bool:
    try:
        keys = loads(line).keys() if len(line) <= LONGEST_PROGRESS_BYTES else set()
    except InvalidTask:
        return False
    return bool(keys) and keys <= _PROGRESS_KEYS


def _cost(objects: Iterable[Any], keys: str) -> float | None:
    """Return the cost at a dotted path, from the first of a command's JSON objects that has a valid one; else None."""
    for found in objects:
        cost = at_keys(found, keys)
        if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost < 1e12:
            return float(cost)
    return None
