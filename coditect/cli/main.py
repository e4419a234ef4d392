"""The command tree of the program `coditect`, which turns an error that a command raises into an exit code.

0 ok, 1 failed, 2 usage, 3 timeout, 4 not found. An error prints its sentence, its facts and the way out; with
CODITECT_DEBUG set the traceback appears instead. A command's module is imported only for that command, so that
`coditect --help` and completion are quick.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group_from_info
from typer.models import TyperInfo

from coditect import __version__
from coditect.errors import CoditectError

FEW_COLLECTIONS = 50_000
"""The garbage collector's threshold, raised because imports make many objects that stay."""


class Branch(NamedTuple):
    """A command or group of commands below `coditect`, with its module and its help text."""

    module: str
    """The module of `coditect.cli` whose `<name>_app`, else `app`, holds the command or the group of this name."""
    help: str


PANELS: Mapping[str, Mapping[str, Branch]] = {
    "Get started": {
        "init": Branch("local.up", "Write a small project that runs at once."),
        "up": Branch("local.up", "Start private servers and a fleet of agents, also while you write them."),
        "down": Branch("local.up", "Stop exactly what `coditect up` started here."),
        "doctor": Branch("doctor", "Check servers, health and targets, and say how to mend each fault."),
        "load": Branch("load", "Put the fleet under load and report what it did."),
    },
    "Work": {
        "task": Branch("task", "Submit, list, follow and cancel tasks; see handoffs, and why no agent takes one."),
        "workflow": Branch("workflow", "Check, start, watch and steer workflows, also from a pattern or a goal."),
        "schedule": Branch("schedule", "Start workflows by the clock, and have agents heal services."),
        "trigger": Branch("schedule", "Start workflows, or send signals, at events."),
        "dead": Branch("dead", "List, redrive or discard tasks that were given up."),
    },
    "Fleet": {
        "agent": Branch("agent", "Run, list and drain agents, and set their log level."),
        "capability": Branch("capability", "List what the fleet offers, and what it learned from failures."),
        "breaker": Branch("lock", "List open circuit breakers with their reasons; open or reset one."),
        "lock": Branch("lock", "Acquire, renew and release locks, and list holders and waiters."),
        "thread": Branch("thread", "Read what agents and people say to each other, and take part."),
        "state": Branch("state", "Read, write and watch shared state."),
        "event": Branch("event", "Follow the events of the fleet, and emit one."),
        "top": Branch("top", "Show agents, queues and workflows live, on one screen."),
    },
    "People": {
        "approval": Branch("approval", "Answer what workflows ask people; check the policy, read the audit trail."),
        "webhook": Branch("event", "Post signed events to URLs until they are accepted."),
    },
    "Run": {
        "dispatcher": Branch("dispatcher", "Run the control plane, show its status, back up and restore its ledger."),
        "api": Branch("api", "Serve the HTTP API and the dashboard, manage API keys, and serve an MCP client."),
        "topology": Branch("topology", "Compare, create or export the exchanges and queues, or draw the fleet."),
    },
}
"""The panels of `coditect --help` with their commands, in the order of the help text."""
BRANCHES: Mapping[str, Branch] = {name: branch for panel in PANELS.values() for name, branch in panel.items()}


class CommandTree(TyperGroup):
    """The root command `coditect`, which imports a subcommand's module only when that subcommand is called for."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = dict.fromkeys(BRANCHES, TyperCommand(None))  # for suggestions: only the names count

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the subcommands in the order of the help text."""
        return list(BRANCHES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a subcommand's module and return the command; None when no subcommand has the name."""
        if cmd_name not in BRANCHES:
            return None
        branch = BRANCHES[cmd_name]
        module = import_module(f"coditect.cli.{branch.module}")
        branch_app: typer.Typer = getattr(module, f"{cmd_name}_app", module.app)
        info = TyperInfo(branch_app, name=cmd_name)
        if branch_app.registered_callback is None:  # else its docstring is the help text
            info.help = branch.help
        group = get_group_from_info(
            info, pretty_exceptions_short=False, suggest_commands=True, rich_markup_mode=self.rich_markup_mode
        )
        return group.commands.get(cmd_name, group)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the panels of subcommands to the help text without importing their modules."""
        width = max(map(len, BRANCHES))
        for title, panel in PANELS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), branch.help) for name, branch in panel.items()])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; print a CoditectError to stderr and exit by its code; with CODITECT_DEBUG raise it."""
        try:
            return super().main(*args, **kwargs)
        except CoditectError as error:
            if os.environ.get("CODITECT_DEBUG"):
                raise
            from coditect.cli.terminal.failure import describe  # takes 4 ms, which only errors need

            typer.echo(describe(error), err=True)
            sys.exit(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A fleet of software agents on RabbitMQ: submit tasks, run agents, look after both.

    Tables for people, --output json for programs.
    Exit codes: 0 ok, 1 failed, 2 usage, 3 timeout, 4 not found.

    The broker and the registry are CODITECT_AMQP_URL and CODITECT_REDIS_URL, or what `coditect up` started.
    """


def build() -> typer.Typer:
    """Return the typer application `coditect` with all its subcommands."""
    app = typer.Typer(
        name="coditect",
        cls=CommandTree,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_root)
    return app


app = build()


def main() -> None:
    """Run the program `coditect` with the arguments of the command line."""
    gc.set_threshold(FEW_COLLECTIONS)
    app()
