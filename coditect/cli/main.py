"""The command tree and the one place where an error becomes an exit code.

0 ok, 1 failed, 2 usage, 3 timeout, 4 not found. An error prints its sentence, its facts and the way out; with
CODITECT_DEBUG set it is a traceback instead. Nothing heavy is imported here: `coditect --help` must be quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from coditect import __version__
from coditect.cli import agent, approval, chaos, dead, events, load, local, task, topology, workflow
from coditect.cli.failure import describe
from coditect.errors import CoditectError


class CommandTree(TyperGroup):
    """The root command."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command line; turns a CoditectError into text on stderr and its exit code."""
        try:
            return super().main(*args, **kwargs)
        except CoditectError as error:
            if os.environ.get("CODITECT_DEBUG"):
                raise
            typer.echo(describe(error), err=True)
            sys.exit(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """A fleet of software agents on RabbitMQ: submit tasks, run agents, look after both.

    Tables for people, --output json for programs.
    Exit codes: 0 ok, 1 failed, 2 usage, 3 timeout, 4 not found.

    The broker and the registry are CODITECT_AMQP_URL and CODITECT_REDIS_URL, or what `coditect up` started.
    """


def build() -> typer.Typer:
    """The whole command tree."""
    app = typer.Typer(
        name="coditect",
        cls=CommandTree,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_root)
    local.add_to(app)
    app.add_typer(agent.app, name="agent")
    app.add_typer(task.app, name="task")
    app.add_typer(workflow.app, name="workflow")
    app.add_typer(approval.app, name="approval")
    app.add_typer(dead.app, name="dead")
    app.add_typer(topology.app, name="topology")
    app.add_typer(events.app, name="events")
    load.add_to(app)
    chaos.add_to(app)
    return app


app = build()


def main() -> None:
    """The program `coditect`."""
    app()
