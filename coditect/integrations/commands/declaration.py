"""Command agents: the `Agent` whose capabilities run the commands that a `CommandFile` declares."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.handlers.context import Context
from coditect.errors import InvalidTask
from coditect.integrations.commands.launching import Launch, Launcher, launching
from coditect.integrations.commands.outcome import CommandValue, Judge, at_keys, hidden
from coditect.integrations.commands.running import CommandRun
from coditect.integrations.commands.schema import CommandFields, CommandFile, InputBy
from coditect.integrations.commands.surroundings import command_environment, secrets_in
from coditect.integrations.commands.template import InputTemplate, filled_arguments
from coditect.integrations.commands.workspace import Checkout, CommandWorkspaces, open_workspaces
from coditect.integrations.described import described
from coditect.model.retry import Retry
from coditect.wire.json import dumps, loads

log = logging.getLogger(__name__)

COST_EVENT = "task.cost"
_LONGEST_NOTE = 500


@dataclass(frozen=True, slots=True)
class CommandRoom:
    """The resources that all commands of one agent process share: launcher, workspaces, and a thread for each slot."""

    launcher: Launcher
    workspaces: CommandWorkspaces
    threads: Executor


def command_agent(file: CommandFile, *, folder: str | None = None) -> Agent:
    """Return the agent that runs a file's commands; workspaces lie below `folder`, or the system's temporary folder.

    Raises:
        SetupError: when a name or a schema is none.
    """
    repositories = {one.workspace.repository for one in file.capabilities.values() if one.workspace.repository}
    base = Path(folder) if folder else None

    @asynccontextmanager
    async def room(agent: Agent) -> AsyncIterator[CommandRoom]:
        with (
            open_workspaces(base, tuple(Path(repository) for repository in sorted(repositories))) as workspaces,
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
        )(_handler(fields))
    return agent


def _handler(fields: CommandFields) -> Callable[..., Any]:
    command = _Command(fields)

    async def run(given: Any, ctx: Context) -> Any:
        return await command.run(given, ctx)

    check = None
    if fields.input_schema:
        from coditect.integrations.json_schema import SchemaCheck  # noqa: PLC0415 - an optional dependency

        check = SchemaCheck(fields.input_schema).check
    given, returned = described(fields.input_schema, check), described(fields.output_schema)
    run.__qualname__ = f"the command {Path(fields.command[0]).name}"
    run.__annotations__ = {"given": given, "ctx": Context, "return": returned}
    return run


class _Command:
    """The command of one capability: it is run for each attempt at a task, and its end is judged."""

    def __init__(self, fields: CommandFields) -> None:
        self._fields = fields
        self._judge = Judge(fields)
        self._arguments = tuple(InputTemplate(one) for one in fields.command)
        self._revision = InputTemplate(fields.workspace.revision)

    async def run(self, given: Any, ctx: Context) -> Any:
        """Run the command for a task in a thread, emit its cost if it has one, return its value; if canceled, end it.

        A cancel ends the command and waits for its end, before CancelledError goes on.
        """
        room: CommandRoom = ctx.lifespan
        loop = asyncio.get_running_loop()
        attempt = _CommandRun(self._fields, ctx, command_environment(os.environ, self._fields.environment, ctx))
        job = loop.run_in_executor(room.threads, self._run, given, room, attempt)
        try:
            found = await asyncio.shield(job)
        except asyncio.CancelledError:
            attempt.ask_to_end()
            await asyncio.wait((job,))
            if not job.cancelled() and (error := job.exception()) is not None:
                log.info("A command was ended", extra={"task_id": ctx.task_id, "reason": str(error)[:_LONGEST_NOTE]})
            raise
        if found.cost is not None:
            await ctx.emit(COST_EVENT, capability=ctx.capability, cost=found.cost)
        return found.value

    def _run(self, given: Any, room: CommandRoom, attempt: _CommandRun) -> CommandValue:
        """Make the workspace, run the command in it, judge its end, and remove the workspace; blocks its thread."""
        arguments = filled_arguments(self._arguments, given)
        body = dumps(given) + b"\n" if self._fields.input is InputBy.STDIN else b""
        with room.workspaces.one(self._checkout(given)) as folder:
            end = attempt.run(room.launcher, arguments, folder, body)
            return self._judge.value(end, folder, attempt.secrets)

    def _checkout(self, given: Any) -> Checkout | None:
        repository = self._fields.workspace.repository
        return None if repository is None else Checkout(Path(repository), self._revision.fill(given))


class _CommandRun:
    """A run of a command, shared by the event loop, which may end it, and the thread that waits for it."""

    def __init__(self, fields: CommandFields, ctx: Context, environment: Mapping[str, str]) -> None:
        self._fields = fields
        self._ctx = ctx
        self._environment = environment
        self._run: CommandRun | None = None
        self._unwanted = False
        self.secrets = secrets_in(environment)

    def ask_to_end(self) -> None:
        self._unwanted = True
        if self._run is not None:
            self._run.ask_to_end()

    def run(self, launcher: Launcher, arguments: tuple[str, ...], folder: Path, body: bytes) -> Any:
        limits = self._fields.limits
        own = {"HOME": str(folder), "TMPDIR": str(folder)} | dict(self._environment)
        launch = Launch(arguments, folder, own, limits.memory, limits.grace)
        self._run = CommandRun(launcher, launch, most_bytes=limits.output)
        if self._unwanted:
            self._run.ask_to_end()
        return self._run.run(body, self._heard)

    def _heard(self, line: bytes) -> None:
        """Report the progress that a command's JSON line states; ignore any other line."""
        try:
            said = loads(line)
        except InvalidTask:
            return
        share, note = at_keys(said, "progress"), at_keys(said, "note")
        if isinstance(share, int | float) and not isinstance(share, bool):
            self._ctx.report(float(share), hidden(note[:_LONGEST_NOTE], self.secrets) if isinstance(note, str) else "")
