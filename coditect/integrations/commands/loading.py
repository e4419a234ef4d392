"""Command agents: the `Agent` whose capabilities run the commands that a file declares.

The file is loaded here; each command has an environment of allowed variables, and its end is judged: a value, or the
error by which the attempt fails.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from coditect.agent.context import Context
from coditect.agent.declaration import Agent
from coditect.agent.program import run_agent
from coditect.agent.workspaces import Workspaces
from coditect.errors import CoditectError, InvalidTask, InvalidWorkflow, SetupError
from coditect.integrations.commands.running import (
    LONGEST_PROGRESS_BYTES,
    Checkout,
    CommandEnd,
    CommandFailed,
    CommandMissing,
    CommandRun,
    CommandTroubled,
    InputRefusedByCommand,
    Launch,
    Launcher,
    bare,
    end_of,
    hidden,
    launching,
    open_workspaces,
    utf_8,
    workspace,
)
from coditect.integrations.commands.schema import (
    CommandFields,
    CommandFile,
    InputBy,
    InputTemplate,
    ResultFormat,
    checked_commands,
    filled_arguments,
)
from coditect.integrations.described import check_of, declaring
from coditect.model.retry import Retry
from coditect.settings.settings import Settings
from coditect.wire.json import dumps, loads

SHORTEST_SECRET = 6
_PROGRESS_KEYS = frozenset({"progress", "note"})


def at_keys(value: Any, keys: str) -> Any:
    """Return the field of a JSON value at a dotted path, such as `usage.cost`; None when there is none."""
    for name in keys.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


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


ALWAYS = ("PATH", "LANG", "LC_*", "TZ")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)


def command_environment(environment: Mapping[str, str], allowed: Iterable[str], ctx: Context) -> dict[str, str]:
    """Return a command's variables: PATH, LANG, LC_*, TZ, those allowed by name, and its task's id, attempt and trace.

    The task's capability and fence are among them, too.
    """
    patterns = (*ALWAYS, *allowed)
    found = {
        name: text for name, text in environment.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    facts = {
        "CODITECT_TASK_ID": ctx.task_id,
        "CODITECT_CAPABILITY": ctx.capability,
        "CODITECT_ATTEMPT": str(ctx.attempt),
        "CODITECT_FENCE": str(ctx.fence),
    }
    return found | facts | {name.upper(): text for name, text in ctx.trace.items()}


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of 6 characters or more of variables that are secrets by name (`API_KEY`), longest first.

    A value with quotes, backslashes or line ends is also returned as JSON and Python write it, and one that is no UTF-8
    as `end_of` decodes it.
    """
    secrets = [text for name, text in environment.items() if _SECRET.search(name) and len(text) >= SHORTEST_SECRET]
    found = {
        form
        for text in secrets
        for form in (
            text,
            json.dumps(text)[1:-1],
            repr(text)[1:-1],
            text.encode(errors="surrogateescape").decode(errors="replace"),
        )
    }
    return tuple(sorted(found, key=len, reverse=True))


log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1_000_000
COST_EVENT = "task.cost"
_LONGEST_NOTE = 500


@dataclass(frozen=True, slots=True)
class CommandRoom:
    """The resources that all commands of one agent process share: launcher, workspaces, and a thread for each slot."""

    launcher: Launcher
    workspaces: Workspaces
    threads: Executor


def command_agent(file: CommandFile, *, folder: str | None = None) -> Agent:
    """Return the agent that runs a file's commands; workspaces lie below `folder`, or the system's temporary folder.

    Raises:
        SetupError: when a name or a schema is invalid.
    """
    used = {fields.workspace.repository for fields in file.capabilities.values()}
    repositories = sorted(Path(repository) for repository in used if repository)

    @asynccontextmanager
    async def room(agent: Agent) -> AsyncIterator[CommandRoom]:
        with (
            open_workspaces(Path(folder) if folder else None, repositories) as workspaces,
            ThreadPoolExecutor(agent.slots, "command") as threads,
            launching() as launcher,
        ):
            yield CommandRoom(launcher, workspaces, threads)

    agent = Agent(
        file.name,
        version=file.version,
        slots=file.slots,
        reserve=0,
        tags=file.tags,
        description=file.description,
        lifespan=room,
    )
    for name, fields in file.capabilities.items():
        agent.capability(
            name,
            timeout=fields.limits.time,
            retry=Retry(max_attempts=fields.attempts),
            description=fields.description or f"Runs {Path(fields.command[0]).name}.",
            tags=fields.tags,
            cost=fields.cost,
            max_queued=fields.max_queued,
        )(_handler(name, fields))
    return agent


def _handler(capability: str, fields: CommandFields) -> Callable[..., Any]:
    command = _Command(fields)

    async def run(value: Any, ctx: Context) -> Any:
        """Run the command for a task in a thread, emit its cost if it has one, return its value; if canceled, end it.

        A cancel ends the command and waits for its end, before CancelledError is raised.
        """
        room: CommandRoom = ctx.lifespan
        loop = asyncio.get_running_loop()
        environment = command_environment(os.environ, fields.environment, ctx)
        attempt = CommandRun(fields.limits.output, secrets_in(environment))
        job = loop.run_in_executor(room.threads, command.run, value, ctx, environment, attempt)
        try:
            found, cost = await asyncio.shield(job)
        except asyncio.CancelledError:
            attempt.ask_to_end()
            await asyncio.wait((job,))
            if not job.cancelled() and (error := job.exception()) is not None:
                log.info("A command was ended", extra={"task_id": ctx.task_id, "reason": str(error)[:_LONGEST_NOTE]})
            raise
        if cost is not None:
            await ctx.emit(COST_EVENT, capability=ctx.capability, cost=cost)
        return found

    run.__qualname__ = f"the command {Path(fields.command[0]).name}"
    check = check_of(fields.input_schema, capability=capability, fix="correct input_schema, or leave it out")
    return declaring(run, fields.input_schema, fields.output_schema, check)


class _Command:
    """The command of one capability: it is run for each attempt at a task, and its end is judged."""

    def __init__(self, fields: CommandFields) -> None:
        self._fields = fields
        self._arguments = tuple(InputTemplate(text) for text in fields.command)
        self._revision = InputTemplate(fields.workspace.revision)

    def run(
        self, value: Any, ctx: Context, environment: Mapping[str, str], attempt: CommandRun
    ) -> tuple[Any, float | None]:
        """Make the workspace, run the command in it, judge its end, and remove the workspace; blocks its thread."""
        room: CommandRoom = ctx.lifespan
        arguments, limits = filled_arguments(self._arguments, value), self._fields.limits
        body = dumps(value) + b"\n" if self._fields.input is InputBy.STDIN else b""
        repository = self._fields.workspace.repository
        checkout = None if repository is None else Checkout(Path(repository), self._revision.fill(value))
        with workspace(room.workspaces, checkout) as folder:
            own = {"HOME": str(folder), "TMPDIR": str(folder)} | dict(environment)
            launch = Launch(arguments, folder, own, limits.memory, limits.grace)
            end = attempt.run(room.launcher, launch, body, partial(_report, ctx, attempt.secrets))
            return self._value(end, folder, attempt.secrets)

    def _value(self, end: CommandEnd, folder: Path, secrets: tuple[str, ...]) -> tuple[Any, float | None]:
        """Return the value that a command wrote to stdout or a file of its folder, and any cost.

        Raises:
            CommandMissing: when it could not be started.
            CommandFailed: when it failed for good, or its memory limit cannot be set.
            InputRefusedByCommand: when it refused the input.
            CommandTroubled: when it may succeed another time; retryable.
        """
        complaint = end.complaint
        self._check_start(end)
        if end.code:
            raise self._failure(end.code, complaint or end_of(end.stdout, secrets))
        result = self._fields.result
        text = end.stdout if result.file is None else self._file(folder, result.file, complaint)
        found = self._result(text, complaint, secrets)
        if result.failed is not None and at_keys(found, result.failed):
            said = hidden(str(found), secrets)[:500]
            raise CommandTroubled("The command's result says that it failed", result=said, complaint=complaint)
        cost = None if result.cost is None else _cost(self._objects(found, text, end.stdout), result.cost)
        if result.value is None:
            return found, cost
        value = at_keys(found, result.value)
        if value is None:
            raise CommandTroubled("The command's result has no such field", field=result.value, complaint=complaint)
        return value, cost

    def _check_start(self, end: CommandEnd) -> None:
        """Raise the error of a command that could not be started; see `_value`."""
        if end.errno == errno.E2BIG:
            fix = "let the command read its input from stdin"
            raise InputRefusedByCommand(
                "The arguments of the command are too long", program=self._fields.command[0], fix=fix
            )
        if end.errno:
            reason = os.strerror(end.errno)
            fix = "install it on the agent's machine, or give its whole path; make a script executable, with a #! line"
            raise CommandMissing(
                "The command cannot be started", program=self._fields.command[0], reason=reason, fix=fix
            )
        if end.unlimited:
            most, fix = self._fields.limits.memory, "lower `limits.memory`, or raise the hard limit: ulimit -H -d"
            raise CommandFailed("The command's memory limit cannot be set", memory=most, reason=end.unlimited, fix=fix)

    def _failure(self, code: int, complaint: str) -> CoditectError:
        codes = self._fields.exit_codes
        if code in codes.rejected:
            return InputRefusedByCommand("The command refuses the input", exit_code=code, complaint=complaint)
        if code in codes.failed:
            return CommandFailed("The command failed", exit_code=code, complaint=complaint)
        if code < 0:
            return CommandTroubled("The command was ended by a signal", signal=-code, complaint=complaint)
        return CommandTroubled("The command failed", exit_code=code, complaint=complaint)

    def _result(self, text: bytes, complaint: str, secrets: tuple[str, ...]) -> Any:
        form = self._fields.result.format
        if form is ResultFormat.TEXT:
            return utf_8(text).decode(errors="replace").rstrip("\r\n")
        found = bare(text) if form is ResultFormat.JSON else _result_line(text)
        try:
            return loads(found)
        except InvalidTask as error:
            raise CommandTroubled(
                "The command ended well and gave no result",
                reason=error.facts.get("reason"),
                output=hidden((found or text).decode(errors="replace"), secrets)[:200],
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
            sentence = "The command ended well and wrote no result's file"
            raise CommandTroubled(sentence, file=name, reason=str(error.strerror), complaint=complaint) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CommandFailed("The result's file is no regular file", file=name)
        with os.fdopen(fd, "rb") as file:
            text = file.read(self._fields.limits.output + 1)
        if len(text) > self._fields.limits.output:
            raise CommandFailed("The result's file is too large", most_bytes=self._fields.limits.output, file=name)
        return text


def _report(ctx: Context, secrets: Collection[str], line: bytes) -> None:
    """Report the progress that a command's JSON line states; ignore any other line."""
    try:
        said = loads(line)
    except InvalidTask:
        return
    share, note = at_keys(said, "progress"), at_keys(said, "note")
    if isinstance(share, int | float) and not isinstance(share, bool):
        ctx.report(float(share), hidden(note, secrets)[:_LONGEST_NOTE] if isinstance(note, str) else "")


def load_commands(path: Path | str, *, folder: str | None = None) -> Agent:
    """Read a file of command agents, and return its `Agent`; workspaces lie below `folder`.

    Raises:
        SetupError: when the file cannot be read or is wrong; the error names the fields and what to write.
    """
    from coditect.workflow.documents.file import read_values  # noqa: PLC0415 - an optional dependency

    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SetupError("The file of commands is too large", path=str(path), most_bytes=MAX_FILE_BYTES)
        values = read_values(content.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError("The file of commands cannot be read", path=str(path), reason=str(error)) from error
    except InvalidWorkflow as error:
        raise SetupError(error.sentence, path=str(path), **error.facts) from error
    return command_agent(checked_commands(values, path=str(path)), folder=folder)


def run_file(path: str, settings: Settings) -> int:
    """Run the command agent of a file until it is stopped, and return the exit code.

    Raises:
        SetupError: when the file is wrong.
    """
    return run_agent(load_commands(path, folder=settings.workspace), settings)


def run_command(command: str, capability: str, environment: list[str], name: str, settings: Settings) -> int:
    """Run an agent with one capability, whose tasks a command does, until it is stopped; return the exit code.

    Raises:
        SetupError: when the command or a name is wrong.
    """
    fields = {"command": command, "environment": environment}
    file = checked_commands({"name": name, "capabilities": {capability: fields}})
    return run_agent(command_agent(file, folder=settings.workspace), settings)
