"""`coditect init`, `up` and `down`: a project, private servers and a fleet on the user's machine.

`up --watch` is for the author of an agent, with all logs shown and changed agents restarted. `init` copies a small
runnable project from the package's folder `starter`.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path
from secrets import token_hex
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from coditect.cli.terminal.output import Aside, FieldsView, Output, OutputOption, TableView, render, say
from coditect.errors import InputError, install_command, missing_extra
from coditect.settings.addresses import without_passwords
from coditect.settings.settings import is_own

if TYPE_CHECKING:
    from coditect.local import Program, UpFolder, UpPlan, UpState


NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
FILES = {
    "greeter.py": "an agent with one capability",
    "greetings.yaml": "a workflow that asks for it many times",
    "test_greeter.py": "both, tested without servers",
    "pyproject.toml": "what is installed, and which agents run",
    "compose.yaml": "the fleet and its servers on one machine, by Docker",
    "Dockerfile": "the agent's image",
    ".env": "the password of that RabbitMQ",
    "k8s/kustomization.yaml": "the fleet on Kubernetes",
    "k8s/dispatcher.yaml": "its control plane, with a volume for the ledger",
    "k8s/greeter.yaml": "its agent",
    "k8s/servers.env": "the addresses of the RabbitMQ and Redis there",
    "README.md": "the commands to try",
    ".gitignore": "what is not kept",
}

init_app = typer.Typer()


@init_app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="The new project's folder, which does not exist or is empty.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Write a small project that runs at once: an agent, a workflow, a test of both, and deployments.

    Nothing is overwritten. `coditect up --watch` in the folder runs it.

    \b
    Example: coditect init my-fleet
    """
    name = folder.resolve().name
    if not NAME.fullmatch(name):
        fix = "small letters, digits, - and _, a letter first: coditect init my-fleet"
        raise InputError("A project has the name of its folder, and this is none", given=name, fix=fix)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "name a new folder, or an empty one"
        raise InputError("The folder is there already, and nothing is overwritten", folder=str(folder), fix=fix)
    starter = files("coditect.cli.local") / "starter"
    words = {"name": name, "password": token_hex(16), "install": install_command("dispatcher,dev")}
    for file in FILES:
        text = (starter / file.removeprefix(".")).read_text(encoding="utf-8")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch(mode=0o600 if "$password" in text else 0o666)
        (folder / file).write_text(Template(text).safe_substitute(words), encoding="utf-8")
    table = TableView(("file", "what it is"), list(FILES.items()))
    render(output, {"folder": str(folder), "files": list(FILES)}, table, Aside(f"cd {folder}, then see README.md."))


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
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show all logs, and restart agents when a Python file changes.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a private RabbitMQ and Redis and a fleet of agents, and keep them running.

    A server whose CODITECT_AMQP_URL or CODITECT_REDIS_URL is set is used and not started. Addresses are
    written to .coditect/env, where other commands find them.

    With --watch, an agent finishes its tasks before it starts again; one that cannot start after a change waits for the
    next.

    \b
    Example: coditect up --detach agents/reviewer.py=2 agents/tester.py
             coditect up --watch my_agent.py
    """
    if watch:
        if no_agents or detach:
            raise InputError("Watched agents run in the foreground", fix="--watch without --detach and --no-agents")
        _run_watched(agents)
        return
    from coditect import local
    from coditect.agent.declaration import load_agents

    for target in fleet(agents, Path.cwd()) if agents and not no_agents else ():
        load_agents(target)  # what cannot be imported is told here and now, and not by a program that ends again
    fleets = programs_of(fleet(agents or [], Path.cwd()))
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

    downed = local.down(up_folder(Path.cwd()))
    stopped = f"Stopped: {', '.join(downed.stopped) or 'remains of a killed up'}."
    document = {"was_up": downed.was_up, "stopped": downed.stopped}
    render(output, document, Aside(stopped if downed.was_up else "Nothing was up."))


def up_folder(start: Path) -> Path:
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
        name = next(name for name in chain([program.name], numbered) if name not in taken)
        taken.add(name)
        named.append(replace(program, name=name))
    return tuple(named)


def control_plane() -> list[Program]:
    """Return the commands by which `coditect up` starts the installed control planes; none if RQ is not installed."""
    from importlib.metadata import entry_points

    from coditect import local
    from coditect.cli.dispatcher import GROUP

    if find_spec("rq") is None:
        say(f"The control plane is not installed, and not started: {install_command('dispatcher')}")
        return []
    return [
        local.Program(entry.name, (sys.executable, "-m", entry.value), announces_ready=True, role=local.Role.DISPATCHER)
        for entry in entry_points(group=GROUP)
    ]


def http_api(environ: Mapping[str, str]) -> list[Program]:
    """Return the HTTP API as a command that `coditect up` starts; an empty list when the API is not installed.

    Without a port in the environment it listens at the default one, or at another when that is taken.
    """
    from coditect import local

    if find_spec("fastapi") is None:
        say(f"The HTTP API is not installed, and not started: {install_command('api')}")
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
        programs += [local.Program(name, argv, announces_ready=True) for name in numbered]
    return programs


def _file_name(target: str) -> str:
    """Return the file's name without its ending in the target of `coditect agent run`, or the module."""
    file = target.partition(":")[0]
    return Path(file).stem if "/" in file or file.endswith(".py") else file


def _show(state: UpState, files: UpFolder, output: Output) -> None:
    amqp_url, redis_url = without_passwords(state.amqp_url), without_passwords(state.redis_url)
    programs = [
        {
            "name": child.name,
            "phase": child.phase.value,
            "pid": child.process.pid if child.process else None,
            "restarts": child.restarts,
            "log": child.log,
        }
        for child in state.children
    ]
    document = {
        "phase": state.phase.value,
        "pid": state.supervisor.pid,
        "amqp_url": amqp_url,
        "redis_url": redis_url,
        "api_url": files.address_of("api"),
        "programs": programs,
    }
    rows = [[program[name] for name in ("name", "phase", "pid", "log")] for program in programs]
    fields = FieldsView({"broker": amqp_url, "registry": redis_url, "dashboard": files.dashboard()})
    render(output, document, fields, TableView(("program", "state", "pid", "log"), rows))


STOP_SECONDS = 30
"""The seconds that an agent has to finish its tasks before `coditect up --watch` replaces its process."""


def _run_watched(agents: list[str] | None) -> None:
    if find_spec("watchfiles") is None:
        raise missing_extra("dev")
    from rich.console import Console

    from coditect import local
    from coditect.agent.declaration import load_agents
    from coditect.cli.terminal.logs import Logs

    named = fleet(agents or [], Path.cwd())
    if not named:
        raise InputError("There is no agent to run", fix=f"name one: coditect up --watch my_agent.py, or {FLEET_TABLE}")
    for target in named:
        load_agents(target)  # what cannot be imported now is told here; after a change the logs tell it
    programs = [_watched(program) for program in programs_of(named)]
    plan = plan_of((*control_plane(), *http_api(os.environ), *programs), Path.cwd(), os.environ)
    files = local.UpFolder(plan.folder)
    logs = Logs(files.log, Console(highlight=False))
    logs.follow(program.name for program in plan.programs)

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
