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
from types import MappingProxyType
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
    """The module of `coditect.cli` whose `app` holds the command or the group of this name."""
    help: str


BRANCHES: Mapping[str, Branch] = MappingProxyType(
    {
        "init": Branch("local.init", "Write a small project that runs at once."),
        "up": Branch("local.up", "Start a private RabbitMQ and Redis and a fleet of agents."),
        "dev": Branch("local.dev", "The same for the author of an agent: changes are run, and all logs shown."),
        "down": Branch("local.up", "Stop exactly what `coditect up` started here."),
        "health": Branch("health", "Ask an agent or a dispatcher here whether it takes work."),
        "doctor": Branch("local.up", "Look for what is missing, unreachable or stale, and say how to mend it."),
        "load": Branch("load", "Put the fleet under load and report what it did."),
        "chaos": Branch("local.chaos", "Break a private fleet by a seed, and see that nothing is lost."),
        "dispatcher": Branch("dispatcher", "Run the control plane, and see what it works on."),
        "api": Branch("api", "Serve the HTTP API and the dashboard."),
        "mcp": Branch("observe.mcp", "Offer the fleet's capabilities as tools to MCP clients."),
        "store": Branch("store", "Back the control plane's ledger up, and restore it."),
        "agent": Branch("agent", "Run an agent, look at the fleet, drain one."),
        "capability": Branch("capability", "See what the fleet offers, and how to ask for it."),
        "task": Branch("work.task", "Submit, wait, ask later, cancel, or ask why no agent takes a task."),
        "workflow": Branch("work.workflow", "Check, draw, run, look at and steer workflows."),
        "pattern": Branch("work.pattern", "Make workflows of named patterns, and run them."),
        "goal": Branch("goals.goal", "Plan a goal in words, and run the plan to its value."),
        "schedule": Branch("work.schedule", "Start workflows by the clock."),
        "trigger": Branch("work.trigger", "Start workflows, or send signals, at events."),
        "webhook": Branch("work.webhook", "Post events to URLs, signed, until they are taken."),
        "approval": Branch("work.approval", "Answer the questions that workflows wait for."),
        "policy": Branch("collaboration.policy", "Check the policy by which approvals are given."),
        "audit": Branch("collaboration.audit", "See what people and policies decided, when and why."),
        "autonomy": Branch("collaboration.autonomy", "See how much finished without a person, and what needed one."),
        "lock": Branch("work.lock", "See who holds and who waits for which lock, and release one by force."),
        "thread": Branch("collaboration.thread", "See what agents and people say to each other, and say something."),
        "handoff": Branch("collaboration.handoff", "See which tasks go from agent to agent, and withdraw an offer."),
        "breaker": Branch("work.breaker", "See which breakers of the fleet are open and why; open or reset one."),
        "trace": Branch("work.trace", "Show the path of one task or workflow, with durations."),
        "dead": Branch("work.dead", "Look at, bring back or throw away tasks that were given up."),
        "topology": Branch("topology", "Compare, create or export the exchanges and queues."),
        "events": Branch("events", "See what happens in the fleet."),
        "log": Branch("observe.log", "Let agents and dispatchers log more or less while they run."),
        "top": Branch("observe.top", "See agents, queues and workflows live, on one screen."),
    }
)


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
        found = TyperInfo(import_module(f"coditect.cli.{branch.module}").app, name=cmd_name, help=branch.help)
        group = get_group_from_info(
            found, pretty_exceptions_short=False, suggest_commands=True, rich_markup_mode=self.rich_markup_mode
        )
        return group.commands.get(cmd_name, group)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of subcommands to the help text without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, branch.help) for name, branch in BRANCHES.items()])

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
