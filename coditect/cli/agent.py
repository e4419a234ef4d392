"""`coditect agent`: run an agent, list and show the living agents, drain one."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.capability import SPEC_COLUMNS, spec_cells
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_agent, complete_capability
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, megabytes, render, say
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.errors import missing_extra
from coditect.model.duration import seconds
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.operations import fleet
from coditect.operations.documents.fleet import AgentDocument, LoadDocument
from coditect.registry.port import Search
from coditect.settings.a2a import a2a_settings
from coditect.settings.chat import chat_settings
from coditect.settings.settings import read_settings, read_variables

app = typer.Typer(no_args_is_help=True)

AgentArgument = Annotated[
    str,
    typer.Argument(metavar="AGENT_ID", help="As `coditect agent list` shows it.", autocompletion=complete_agent),
]


@app.command("run")
def run_agent(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[PATH_OR_MODULE]", help="A file, a module, either with :name, or commands as *.yaml."),
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, max=256, help="Agent processes.")] = 1,
    slots: Annotated[int | None, typer.Option("--slots", min=1, max=10_000, help="Tasks at once, per process.")] = None,
    health_port: Annotated[
        int | None, typer.Option("--health-port", min=0, max=65_535, help="/livez and /readyz; 0 takes any.")
    ] = None,
    mcp: Annotated[
        str | None, typer.Option("--mcp", metavar="COMMAND_OR_URL", help="The tools of an MCP server instead.")
    ] = None,
    a2a: Annotated[
        str | None,
        typer.Option("--a2a", metavar="URL", help="The skills of an A2A agent instead; the URL of its card."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FOLDER", help="A folder of markdown agents, done by a model.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The agent of --mcp, --a2a, --markdown or --command; names capabilities, too."),
    ] = None,
    command: Annotated[
        str | None, typer.Option("--command", help="A command that does the tasks of --capability: JSON in, JSON out.")
    ] = None,
    capability: Annotated[str | None, typer.Option("--capability", help="The capability of --command.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME", help="A variable that --command gets; repeatable.")
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
    from coditect.agent.processes.copies import PARENT

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


def _pass_on(**given: int | None) -> None:
    """Set environment variables from options, since child processes learn options only by the environment."""
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})


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
        what = "Commands are run by one process; --slots says how many run at once"
        raise typer.BadParameter(what if commands else "That is served by one process; start it several times")


def is_commands(target: str | None) -> bool:
    """Tell by its name whether the target of `agent run` is a YAML file, which declares an agent that runs commands."""
    return (target or "").endswith((".yaml", ".yml"))


def _run_commands(file: str | None, command: str | None, capability: str, environment: list[str], name: str) -> int:
    """Run an agent that does its tasks by commands: those of a YAML file, or the given one; return the exit code."""
    from coditect.integrations.commands import program

    if command is None:
        assert file is not None
        return program.run_file(file, read_settings())
    return program.run_command(command, capability, environment, name, read_settings())


def _run_tools(name: str, target: str) -> int:
    """Run the agent that offers an MCP server's tools as capabilities, and return the exit code."""
    try:
        from coditect.integrations.mcp.declaration import run_tools
    except ImportError as error:
        raise missing_extra("mcp") from error
    return run_tools(name, target, read_settings())


def _run_remote(name: str, url: str) -> int:
    """Run an agent that offers the skills of a remote agent (A2A protocol) as capabilities; return the exit code."""
    from coditect.agent import program

    try:
        from coditect.integrations.a2a.remote.declaration import a2a_agent
    except ImportError as error:
        raise missing_extra("a2a") from error
    agent = run_loop(a2a_agent(name, url, settings=a2a_settings(read_variables())))
    return program.run_agent(agent, read_settings())


def _run_markdown(name: str, folder: Path) -> int:
    """Run an agent that does tasks by a language model, as a folder's markdown files say; return the exit code."""
    from coditect.agent import program
    from coditect.cli.compose import RealConnections
    from coditect.integrations.markdown.declaration import markdown_agent
    from coditect.integrations.markdown.file import read_folder

    try:
        from coditect.chat.endpoint import open_chat
    except ImportError as error:
        raise missing_extra("chat") from error
    settings, chat = read_settings(), chat_settings(read_variables())
    registry = RealConnections(settings).registry
    return program.run_agent(markdown_agent(name, read_folder(folder), lambda: open_chat(chat), registry), settings)


@app.command("list")
def list_agents(
    context: typer.Context,
    capability: Annotated[
        str | None,
        typer.Option("--capability", "-c", help="Only who offers it.", autocompletion=complete_capability),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only with this tag.")] = None,
    keyword: Annotated[
        str | None, typer.Option("--keyword", "-k", help="Only with this word in a name, description or tag.")
    ] = None,
    status: Annotated[AgentStatus | None, typer.Option("--status", help="Only in this state.")] = None,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the living agents with their state, load and capabilities.

    \b
    Example: coditect agent list --capability hello.greet
    """
    search = Search(capability=capability, tag=tag, keyword=keyword, status=status)
    opened = connections(context)

    async def look() -> ShownAnswer:
        records = await fleet.find_agents(opened, search)
        columns = ("agent", "status", "running", "slots", "capabilities", "completed", "failed", "cpu %", "memory")
        table = TableView(columns, [_row(record) for record in records], "No agent is registered.")
        return ShownAnswer([agent_json(record) for record in records], (table,))

    present(look, output, watch=watch)


@app.command("show")
def show_agent(context: typer.Context, agent_id: AgentArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one agent: capabilities with schemas, load and lease.

    \b
    Example: coditect agent show reviewer-1f2e3d4c
    """
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
    wait: Annotated[
        str | None, typer.Option("--wait", help="Return when it is gone from the registry, e.g. 60s.")
    ] = None,
) -> None:
    """Ask an agent to take nothing new, finish what it runs, and end.

    \b
    Example: coditect agent drain reviewer-1f2e3d4c --wait 60s
    """
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
    document = asdict(AgentDocument.of(record))
    return document | {"started_at": instant(record.registration.started_at_ms)}
