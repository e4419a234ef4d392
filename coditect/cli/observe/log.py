"""`coditect log`: let agents and dispatchers log more or less while they run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_agent
from coditect.cli.terminal.output import say
from coditect.model.duration import seconds
from coditect.operations import log_levels
from coditect.wire.control_messages import LogLevelOrder

EVERY = "all"

app = typer.Typer(no_args_is_help=True)


class LevelChoice(StrEnum):
    """The level of a logger as a person gives it."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    DEFAULT = "default"
    """The level with which the process began."""


@app.command("level")
def set_level(
    context: typer.Context,
    logger: Annotated[str, typer.Argument(metavar="LOGGER", help="Such as agent.runtime, or all.")],
    level: Annotated[LevelChoice, typer.Argument(metavar="LEVEL", help="debug, info, warning, error or default.")],
    lasting: Annotated[str | None, typer.Option("--for", help="How long, e.g. 10m. Default: until it ends.")] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", help="Only this agent, by its id.", autocompletion=complete_agent)
    ] = None,
) -> None:
    """Set the level of a logger, and of those below it, in every agent and dispatcher.

    A logger has the name of its module; the leading `coditect.` may be left out. `default` is the level with which the
    process began. Processes that start later begin with CODITECT_LOG_LEVEL.

    \b
    Example: coditect log level agent.runtime debug --for 10m
    """
    wanted = None if level is LevelChoice.DEFAULT else level.value
    order = LogLevelOrder("" if logger == EVERY else logger, wanted, None if lasting is None else seconds(lasting))
    run_loop(log_levels.set_log_level(connections(context), order, agent_id=agent))
    span = f" for {lasting}" if lasting else ""
    say(f"{logger} logs at {level.value}{span}: sent to {agent or 'every agent and dispatcher'}.")
    if logger != EVERY and not log_levels.is_module(logger):
        say(f"No module here is named {logger}: it counts only for an agent that has a logger of this name.")
