"""`coditect agent`: run, list and drain agents, and set the log level of what runs.

What only the other commands need is imported by them: an agent keeps in memory what `coditect agent run` imports.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import complete_agent, complete_capability, connections
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.options import ShownAnswer, presented
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, megabytes, render, say
from coditect.errors import needing
from coditect.model.duration import seconds
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.settings.settings import A2aSettings, ChatSettings, read_settings, read_variables

app = typer.Typer(no_args_is_help=True)

AgentArgument = Annotated[
    str, typer.Argument(metavar="AGENT_ID", help="As `coditect agent list` shows it.", autocompletion=complete_agent)
]


@app.command("run")
def run_agent(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[PATH_OR_MODULE]", help="A file, a module, either with :name, or commands as *.yaml."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Agent processes.")] = 1,
    slots: Annotated[int | None, typer.Option(min=1, max=10_000, help="Tasks at once, per process.")] = None,
    health_port: Annotated[int | None, typer.Option(min=0, max=65_535, help="/livez and /readyz; 0 takes any.")] = None,
    mcp: Annotated[
        str | None, typer.Option(metavar="COMMAND_OR_URL", help="The tools of an MCP server instead.")
    ] = None,
    a2a: Annotated[
        str | None, typer.Option(metavar="URL", help="The skills of an A2A agent instead; the URL of its card.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A folder of markdown agents, done by a model.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The agent of --mcp, --a2a, --markdown or --command; names capabilities, too.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="A command that does the tasks of --capability: JSON in, JSON out.")
    ] = None,
    capability: Annotated[str | None, typer.Option(help="The capability of --command.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A variable that --command gets; repeatable.")
    ] = None,
) -> None:
    """Run an agent until SIGTERM or SIGINT. It then finishes its running tasks and returns all others.

    \b
    Example: coditect agent run agents/reviewer.py --processes 2
             coditect agent run --name git --mcp 'mcp-server-git --repository .'
             coditect agent run --name partner --a2a https://agent.example.com
             coditect agent run --command 'my-agent --json' --capability code.fix
             coditect agent run --name helpers --markdown .claude/agents
    """
    from coditect.agent import program
    from coditect.agent.process import PARENT

    _check_target([target, mcp, a2a, command, None if markdown is None else str(markdown)], capability, processes)
    if processes > 1 and health_port:
        raise typer.BadParameter("Several processes cannot share one port; --health-port 0 gives each its own")
    _pass_on(CODITECT_SLOTS=slots, CODITECT_HEALTH_PORT=health_port)
    if PARENT not in os.environ:
        say_guesses(AMQP, REDIS)
    if command is not None or is_commands(target):
        raise typer.Exit(_run_commands(target, command, capability or "", env or [], name or "commands"))
    if target is not None:
        raise typer.Exit(program.run(target, read_settings(), processes=processes))
    if mcp is not None:
        raise typer.Exit(_run_tools(name or "mcp", mcp))
    if a2a is not None:
        raise typer.Exit(_run_remote(name or "a2a", a2a))
    assert markdown is not None
    raise typer.Exit(_run_markdown(name or "helpers", markdown))


def _pass_on(**options: int | None) -> None:
    """Set environment variables from options, since child processes learn options only by the environment."""
    os.environ.update({name: str(value) for name, value in options.items() if value is not None})


def _check_target(targets: list[str | None], capability: str | None, processes: int) -> None:
    """Refuse a call of `agent run` that names no agent or several, or options that do not fit the kind of agent."""
    file, mcp, a2a, command, markdown = targets
    if targets.count(None) != len(targets) - 1:
        raise typer.BadParameter(
            "Name a file or module, --mcp SERVER, --a2a URL, --markdown FOLDER, or --command; one of them"
        )
    if (command is None) is not (capability is None):
        raise typer.BadParameter("--command and --capability belong together")
    commands = command is not None or is_commands(file)
    if (mcp or a2a or commands or markdown) and processes > 1:
        reason = "Commands are run by one process; --slots says how many run at once"
        raise typer.BadParameter(reason if commands else "That is served by one process; start it several times")


def is_commands(target: str | None) -> bool:
    """Tell by its name whether the target of `agent run` is a YAML file, which declares an agent that runs commands."""
    return (target or "").endswith((".yaml", ".yml"))


def _run_commands(file: str | None, command: str | None, capability: str, environment: list[str], name: str) -> int:
    """Run an agent that does its tasks by commands: those of a YAML file, or the given one; return the exit code."""
    from coditect.integrations.commands.loading import run_command, run_file

    if command is None:
        assert file is not None
        return run_file(file, read_settings())
    return run_command(command, capability, environment, name, read_settings())


def _run_tools(name: str, target: str) -> int:
    """Run the agent that offers an MCP server's tools as capabilities, and return the exit code."""
    with needing("mcp"):
        from coditect.integrations.mcp.declaration import run_tools
    return run_tools(name, target, read_settings())


def _run_remote(name: str, url: str) -> int:
    """Run an agent that offers the skills of a remote agent (A2A protocol) as capabilities; return the exit code."""
    from coditect.agent import program

    with needing("a2a"):
        from coditect.integrations.a2a.remote import a2a_agent
    agent = run_loop(a2a_agent(name, url, settings=A2aSettings.read(read_variables())))
    return program.run_agent(agent, read_settings())


def _run_markdown(name: str, folder: Path) -> int:
    """Run an agent that does tasks by a language model, as a folder's markdown files say; return the exit code."""
    from coditect.agent import program
    from coditect.cli.compose import RealConnections
    from coditect.integrations.markdown import markdown_agent, read_folder

    with needing("chat"):
        from coditect.chat.endpoint import open_chat
    settings, chat = read_settings(), ChatSettings.read(read_variables())
    registry = RealConnections(settings).registry
    return program.run_agent(markdown_agent(name, read_folder(folder), lambda: open_chat(chat), registry), settings)


@app.command("list")
@presented
async def list_agents(
    context: typer.Context,
    capability: Annotated[
        str | None, typer.Option("--capability", "-c", help="Only who offers it.", autocompletion=complete_capability)
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    keyword: Annotated[
        str | None, typer.Option("--keyword", "-k", help="Only with this word in a name, description or tag.")
    ] = None,
    status: Annotated[
        AgentStatus | None, typer.Option(help="Only in this state; offline: went away within a day.")
    ] = None,
) -> ShownAnswer:
    """List the living agents with their state, load and capabilities.

    \b
    Example: coditect agent list --capability hello.greet
    """
    from coditect.operations import fleet
    from coditect.registry.port import Search

    search = Search(capability=capability, tag=tag, keyword=keyword, status=status)
    opened = connections(context)
    records = await fleet.find_agents(opened, search)
    empty = "No agent is registered."
    if not records and search != Search():
        registered = len(await fleet.find_agents(opened, Search()))
        empty = f"No agent fits (registered: {registered})."
    columns = ("agent", "status", "running", "slots", "capabilities", "completed", "failed", "cpu %", "memory")
    table = TableView(columns, [_row(record) for record in records], empty)
    return ShownAnswer([agent_json(record) for record in records], (table,))


@app.command("get")
def get_agent(context: typer.Context, agent_id: AgentArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one agent: capabilities with schemas, load and lease.

    \b
    Example: coditect agent get reviewer-1f2e3d4c
    """
    from coditect.cli.capability import SPEC_COLUMNS, spec_cells
    from coditect.operations import fleet
    from coditect.operations.documents import LoadDocument

    record = run_loop(fleet.get_agent(connections(context), AgentId(agent_id)))
    document = agent_json(record)
    fields = {name: value for name, value in document.items() if name not in {"capabilities", "load"}}
    rows = [(spec.name, *spec_cells(spec)) for spec in record.registration.capabilities]
    load = FieldsView(asdict(LoadDocument.of(record.load)))
    render(output, document, FieldsView(fields), load, TableView(("capability", *SPEC_COLUMNS), rows))


@app.command("drain")
def drain_agent(
    context: typer.Context,
    agent_id: AgentArgument,
    wait: Annotated[str | None, typer.Option(help="Return when it is gone from the registry, e.g. 60s.")] = None,
) -> None:
    """Ask an agent to take nothing new, finish what it runs, and end.

    \b
    Example: coditect agent drain reviewer-1f2e3d4c --wait 60s
    """
    from coditect.operations import fleet

    wait_seconds = seconds(wait) if wait else None
    run_loop(fleet.drain_agent(connections(context), AgentId(agent_id), wait_seconds=wait_seconds))
    say(f"{agent_id} {'is gone' if wait else 'was asked to drain'}.")


def _row(record: AgentRecord) -> tuple[object, ...]:
    load = record.load
    return (
        record.agent_id,
        f"{load.status.value}: {load.trouble}" if load.trouble else load.status.value,
        load.running,
        record.registration.slots,
        [spec.name for spec in record.registration.capabilities],
        load.completed,
        load.failed,
        load.cpu_percent,
        megabytes(load.resident_bytes),
    )


def agent_json(record: AgentRecord) -> dict[str, object]:
    """Return an agent's registry record as JSON values for `--output json`."""
    from coditect.operations.documents import AgentDocument

    document = asdict(AgentDocument.of(record))
    last = {"last_heartbeat": instant(record.load.beat_ms)} if record.load.beat_ms else {}
    return document | {"started_at": instant(record.registration.started_at_ms)} | last


EVERY = "all"


class LevelChoice(StrEnum):
    """The level of a logger as a person gives it."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    DEFAULT = "default"
    """The level with which the process began."""


@app.command("log-level")
def set_level(
    context: typer.Context,
    logger: Annotated[str, typer.Argument(metavar="LOGGER", help="Such as agent.runtime, or all.")],
    level: Annotated[LevelChoice, typer.Argument(metavar="LEVEL", help="debug, info, warning, error or default.")],
    lasting: Annotated[str | None, typer.Option("--for", help="How long, e.g. 10m. Default: until it ends.")] = None,
    agent: Annotated[
        str | None, typer.Option(help="Only this agent, by its id.", autocompletion=complete_agent)
    ] = None,
) -> None:
    """Set the level of a logger, and of those below it, in every agent and dispatcher.

    A logger has the name of its module; the leading `coditect.` may be left out. `default` is the level with which the
    process began. Processes that start later begin with CODITECT_LOG_LEVEL.

    \b
    Example: coditect agent log-level agent.runtime debug --for 10m
    """
    from coditect.operations import fleet
    from coditect.wire.control_messages import LogLevelOrder

    wanted = None if level is LevelChoice.DEFAULT else level.value
    order = LogLevelOrder("" if logger == EVERY else logger, wanted, None if lasting is None else seconds(lasting))
    run_loop(fleet.set_log_level(connections(context), order, agent_id=agent))
    span = f" for {lasting}" if lasting else ""
    say(f"{logger} logs at {level.value}{span}: sent to {agent or 'every agent and dispatcher'}.")
    if logger != EVERY and not fleet.is_module(logger):
        say(f"No module here is named {logger}: it counts only for an agent that has a logger of this name.")
