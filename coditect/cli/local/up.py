"""`coditect up`, `down` and `doctor`: private servers and a fleet on the user's machine."""

from __future__ import annotations

import os
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.output import Aside, FieldsView, Output, OutputOption, TableView, render, say
from coditect.errors import (
    CoditectError,
    ControlPlaneRequired,
    InputError,
    RegistryUnavailable,
    Retryable,
    SetupError,
)
from coditect.settings.addresses import without_passwords
from coditect.settings.own_files import is_own
from coditect.settings.settings import Settings, read_settings

if TYPE_CHECKING:  # pydantic, which coditect.local needs, would double the time of `coditect --help`
    from coditect.local import Program, UpFolder, UpPlan, UpState
    from coditect.local.doctor import Check
    from coditect.operations.connections import Connections
    from coditect.operations.rebuild import Rebuilt

FOLDER = Path(".coditect")
FLEET_TABLE = "[tool.coditect.fleet] in pyproject.toml"


app = typer.Typer()


@app.command("up")
def up_command(
    agents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[AGENT[=PROCESSES]...]", help=f"Files or modules to run; default: {FLEET_TABLE}."),
    ] = None,
    no_agents: Annotated[bool, typer.Option("--no-agents", help="Only the servers.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all is ready; stop it with down.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a private RabbitMQ and Redis and a fleet of agents, and keep them running.

    A server whose CODITECT_AMQP_URL or CODITECT_REDIS_URL is set is used and not started. Addresses are
    written to .coditect/env, where other commands find them.

    \b
    Example: coditect up --detach agents/reviewer.py=2 agents/tester.py
    """
    from coditect import local
    from coditect.agent.loading import load_agents

    for target in fleet(agents, Path.cwd()) if agents and not no_agents else ():
        load_agents(target)  # what cannot be imported is told here and now, and not by a program that ends again
    fleets = _fleet_programs(agents or [], Path.cwd())
    if not fleets and not no_agents:
        say(f"No agent is started: name files, such as `coditect up my_agent.py`, or list them in {FLEET_TABLE}.")
    programs = () if no_agents else (*control_plane(), *http_api(os.environ), *fleets)
    plan = plan_of(programs, Path.cwd(), os.environ)
    files = local.UpFolder(plan.folder)
    stays = f"What waits stays in {plan.folder}: `coditect up` goes on with it."
    if detach:
        try:
            state = local.up_detached(plan, environ=os.environ, say=say)
        except KeyboardInterrupt:
            say(f"Nothing goes on: what was started is stopped again. {stays}")
            raise
        _show(state, files, output)
        return

    def ready() -> None:
        state = local.read_state(files)
        if state is not None:
            _show(state, files, output)
            sys.stdout.flush()
        say("Ready. Ctrl-C stops it.")

    local.up(plan, environ=os.environ, say=say, ready=ready)
    say(f"Stopped. {stays}")


@app.command("down")
def down_command(output: OutputOption = Output.TABLE) -> None:
    """Stop the servers and programs that `coditect up` started here; agents finish their tasks. Idempotent.

    \b
    Example: coditect down
    """
    from coditect import local

    downed = local.down(_up_folder(Path.cwd()))
    stopped = f"Stopped: {', '.join(downed.stopped) or 'remains of a killed up'}."
    document = {"was_up": downed.was_up, "stopped": downed.stopped}
    render(output, document, Aside(stopped if downed.was_up else "Nothing was up."))


@app.command("doctor")
def doctor_command(
    context: typer.Context,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make again from the ledger what the broker or Redis lost, and report it.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check Python, disk, servers and leftover files, and print a fix for each fault; only --rebuild changes anything.

    \b
    Example: coditect doctor
    """
    from coditect import local
    from coditect.cli.compose import sign_in

    if rebuild:
        _rebuild(context, output)
        return

    connections(context)  # libraries are silent from then on
    settings = read_settings()
    checks = local.doctor(
        _up_folder(Path.cwd()),
        environ=os.environ,
        amqp_url=_named(settings.amqp_url, Settings().amqp_url),
        redis_url=_named(settings.redis_url, Settings().redis_url),
        management_url=settings.management_url,
        sign_in=partial(sign_in, heartbeat_seconds=settings.heartbeat_seconds),
    )
    if all(check.ok for check in checks if check.name == "broker"):
        checks.append(run_loop(check_control_plane(connections(context))))
        checks += run_loop(_check_webhooks(context))
    document = [{"name": one.name, "ok": one.ok, "detail": one.detail, "fix": one.fix} for one in checks]
    table = TableView(("check", "ok", "found"), [(one.name, one.ok, one.detail) for one in checks])
    render(output, document, table, *(Aside(f"{one.name}: {one.fix}") for one in checks if one.fix))
    if not all(one.ok for one in checks):
        raise typer.Exit(1)


async def check_control_plane(opened: Connections) -> Check:
    """Check that the broker lets its user ask the control plane, and that a dispatcher answers if programs need one.

    They do where a dispatcher has been, or an agent offers a long capability, whose tasks are durable.
    """
    from coditect.local.doctor import Check
    from coditect.operations.fleet import find_agents, offers_of
    from coditect.operations.status import cluster_status
    from coditect.registry.port import Search
    from coditect.wire import routing

    name = "control plane"
    try:
        async with opened.broker() as broker:
            try:
                found = await cluster_status(broker)
            except ControlPlaneRequired as error:
                needed = await broker.stats(routing.CONTROL_QUEUE) is not None
                with suppress(RegistryUnavailable):
                    needed = needed or any(one.spec.long for one in offers_of(await find_agents(opened, Search())))
                if needed:
                    return Check(name, False, "no dispatcher answers", str(error.facts["fix"]))
                return Check(name, True, "no dispatcher, which direct tasks do not need")
    except CoditectError as error:
        return Check(name, False, str(error), str(error.facts.get("fix", "")))
    return Check(name, True, f"{len(found.dispatchers)} dispatchers, {len(found.shards)} shards")


async def _check_webhooks(context: typer.Context) -> list[Check]:
    """Check that an API posts the events of every webhook; nothing is checked where no control plane answers."""
    from coditect.local.doctor import Check
    from coditect.operations.coordination import webhooks

    try:
        found = await webhooks.list_webhooks(connections(context))
    except (Retryable, SetupError):
        return []
    except CoditectError as error:
        return [Check("webhooks", False, str(error), str(error.facts.get("fix", "")))]
    undelivered = [webhook.name for webhook in found if webhook.state == "undelivered"]
    if not undelivered:
        return [Check("webhooks", True, f"{len(found)} webhooks")] if found else []
    return [Check("webhooks", False, f"undelivered: {', '.join(undelivered)}", webhooks.NO_API)]


def _rebuild(context: typer.Context, output: Output) -> None:
    from coditect.operations.rebuild import KINDS, rebuild

    async def run() -> Rebuilt:
        async with connections(context).broker() as broker:
            return await rebuild(broker)

    rebuilt = run_loop(run())
    table = TableView(("kind", "made again", "what"), [(kind, rebuilt.counts[kind], KINDS[kind]) for kind in KINDS])
    asides = [Aside(f"{rebuilt.shards} shards were gone over.")]
    if not rebuilt.compared:
        less = "RQ could not be compared to the end: more of its jobs may have been made than are counted."
        asides.append(Aside(less))
    render(output, {"shards": rebuilt.shards, **rebuilt.counts, "compared": rebuilt.compared}, table, *asides)


def _named(url: str, default: str) -> str | None:
    """Return a server's URL; None if it equals the default URL, as it does when no setting names the server."""
    return None if url == default else url


def _up_folder(start: Path) -> Path:
    """Return the nearest `.coditect` folder with files of `coditect up`, from `start` upwards; else that of `start`."""
    places = (place / FOLDER for place in (start, *start.parents))
    return next((place for place in places if is_own(place / "up.json")), start / FOLDER)


def fleet(named: Sequence[str], folder: Path) -> dict[str, int]:
    """Return agents' files or modules with numbers of processes: those given to the command, else in pyproject.toml."""
    if named:
        return dict(_agent_count(text) for text in named)
    project = folder / "pyproject.toml"
    if not project.is_file():
        return {}
    try:
        tables = tomllib.loads(project.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("pyproject.toml cannot be read", path=project, reason=str(error)) from error
    listed = tables.get("tool", {}).get("coditect", {}).get("fleet", {})
    return dict(_agent_count(f"{target}={processes}") for target, processes in listed.items())


def _agent_count(text: str) -> tuple[str, int]:
    target, _, processes = text.partition("=")
    if not target or not (processes or "1").isdecimal() or not 1 <= int(processes or 1) <= 256:
        raise InputError("An agent is a file or module, with =1 to =256 processes", given=text)
    return target, int(processes or 1)


def _fleet_programs(named: Sequence[str], folder: Path) -> list[Program]:
    return programs_of(fleet(named, folder))


def plan_of(programs: tuple[Program, ...], folder: Path, environ: Mapping[str, str]) -> UpPlan:
    """Return the plan of `coditect up`: programs to run in a folder, on the environment's servers or private ones."""
    from coditect import local

    return local.UpPlan(
        folder=folder / FOLDER,
        working_folder=folder,
        programs=_distinct(programs),
        amqp_url=environ.get("CODITECT_AMQP_URL"),
        redis_url=environ.get("CODITECT_REDIS_URL"),
        management_url=environ.get("CODITECT_MANAGEMENT_URL"),
    )


def _distinct(programs: Iterable[Program]) -> tuple[Program, ...]:
    """Return the programs, numbered where they have one name: log and ready file are named by it."""
    taken = {"up", "epmd", "rabbitmq", "redis"}
    named = []
    for program in programs:
        numbered = (f"{program.name}-{number}" for number in count(2))
        name = next(one for one in chain([program.name], numbered) if one not in taken)
        taken.add(name)
        named.append(replace(program, name=name))
    return tuple(named)


def control_plane() -> list[Program]:
    """Return the commands by which `coditect up` starts the installed control planes; none if RQ is not installed."""
    from importlib.metadata import entry_points
    from importlib.util import find_spec

    from coditect import local
    from coditect.cli.dispatcher import GROUP

    if find_spec("rq") is None:
        say("The control plane is not installed, and not started: pip install 'coditect[dispatcher]'")
        return []
    return [
        local.Program(one.name, (sys.executable, "-m", one.value), announces_ready=True, role=local.Role.DISPATCHER)
        for one in entry_points(group=GROUP)
    ]


def http_api(environ: Mapping[str, str]) -> list[Program]:
    """Return the HTTP API as a command that `coditect up` starts; an empty list when the API is not installed.

    Without a port in the environment it listens at the default one, or at another when that is taken.
    """
    from importlib.util import find_spec

    from coditect import local

    if find_spec("fastapi") is None:
        say("The HTTP API is not installed, and not started: pip install 'coditect[api]'")
        return []
    chosen = () if "CODITECT_API_PORT" in environ else ("--any-port",)
    command = (sys.executable, "-m", "coditect", "api", *chosen)
    return [local.Program("api", command, announces_ready=True, role=local.Role.API)]


def programs_of(agents: Mapping[str, int]) -> list[Program]:
    """Return one command for each process of the agents, so that each process restarts by itself."""
    from coditect import local

    files = Counter(_file_name(target) for target in agents)
    programs = []
    for target, processes in agents.items():
        file, agent = _file_name(target), target.partition(":")[2]
        name = f"{file}-{agent}" if agent and files[file] > 1 else file
        argv = (sys.executable, "-m", "coditect", "agent", "run", target)
        numbered = [f"{name}-{number}" for number in range(1, processes + 1)] if processes > 1 else [name]
        programs += [local.Program(one, argv, announces_ready=True) for one in numbered]
    return programs


def _file_name(target: str) -> str:
    """Return the file's name without its ending in the target of `coditect agent run`, or the module."""
    file = target.partition(":")[0]
    return Path(file).stem if "/" in file or file.endswith(".py") else file


def _show(state: UpState, files: UpFolder, output: Output) -> None:
    amqp_url, redis_url = without_passwords(state.amqp_url), without_passwords(state.redis_url)
    document = {
        "phase": state.phase.value,
        "pid": state.supervisor.pid,
        "amqp_url": amqp_url,
        "redis_url": redis_url,
        "api_url": files.address_of("api"),
        "programs": [
            {
                "name": child.name,
                "phase": child.phase.value,
                "pid": child.process.pid if child.process else None,
                "restarts": child.restarts,
                "log": child.log,
            }
            for child in state.children
        ],
    }
    rows = [
        (child.name, child.phase.value, child.process.pid if child.process else None, child.log)
        for child in state.children
    ]
    fields = FieldsView({"broker": amqp_url, "registry": redis_url, "dashboard": files.dashboard()})
    render(output, document, fields, TableView(("program", "state", "pid", "log"), rows))
