"""`coditect dev`: `coditect up` for the author of an agent, with all logs shown and changed agents restarted."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coditect.cli.local.up import FLEET_TABLE, control_plane, fleet, http_api, plan_of, programs_of
from coditect.cli.terminal.output import say
from coditect.errors import InputError, missing_extra

if TYPE_CHECKING:
    from coditect.local import Program

STOP_SECONDS = 30
"""The seconds that an agent has to finish its tasks before `coditect dev` replaces its process."""

app = typer.Typer()


@app.command("dev")
def dev_command(
    agents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[AGENT[=PROCESSES]...]", help=f"Files or modules to run; default: {FLEET_TABLE}."),
    ] = None,
) -> None:
    """Run servers, a dispatcher and agents, show what they print, and start an agent again when a Python file changes.

    Like `coditect up` in the foreground. An agent finishes its tasks before it starts again; one that
    cannot start after a change waits for the next. Ctrl-C ends everything.

    \b
    Example: coditect dev my_agent.py
    """
    if find_spec("watchfiles") is None:
        raise missing_extra("dev")
    from rich.console import Console

    from coditect import local
    from coditect.agent.loading import load_agents
    from coditect.cli.terminal.logs import Logs

    named = fleet(agents or [], Path.cwd())
    if not named:
        raise InputError("There is no agent to run", fix=f"name a file: coditect dev my_agent.py, or {FLEET_TABLE}")
    for target in named:
        load_agents(target)  # what cannot be imported now is told here; after a change the logs tell it
    programs = [_watched(one) for one in programs_of(named)]
    plan = plan_of((*control_plane(), *http_api(os.environ), *programs), Path.cwd(), os.environ)
    files = local.UpFolder(plan.folder)
    logs = Logs(files.log, Console(highlight=False))
    logs.follow(one.name for one in plan.programs)

    def ready() -> None:
        if (address := files.dashboard()) is not None:
            logs.say(f"The dashboard: {address}")
        logs.say(f"Ready. A change of a Python file starts the agents again; Ctrl-C ends everything. Logs: {files.log}")

    with logs.shown():
        local.up(plan, environ=os.environ, say=logs.say, ready=ready)
    say("Stopped.")


def _watched(program: Program) -> Program:
    """Return the program wrapped in `watchfiles`, which restarts it when a Python file in the folder changes."""
    watch = ("--filter", "python", "--sigint-timeout", str(STOP_SECONDS), "--target-type", "command")
    return replace(program, argv=(sys.executable, "-m", "watchfiles", *watch, shlex.join(program.argv), "."))
