"""`up` and `down`: start the private servers and a fleet, in the foreground or background, and stop exactly those."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from secrets import token_urlsafe

from pydantic import TypeAdapter

from coditect.agent.process import ProcessId, identify, is_running
from coditect.aio.launch import READY_FILE
from coditect.aio.loop import run_loop
from coditect.local.errors import AlreadyUp, LocalError, StartFailed
from coditect.local.servers import (
    Addresses,
    Binaries,
    find_binaries,
    has_management,
    keep_addresses,
    rabbitmq_children,
    redis_child,
    require_rabbitmq,
    require_redis,
)
from coditect.local.state import (
    Phase,
    UpFolder,
    UpState,
    forget,
    hold,
    open_private,
    read_state,
    write_env,
    write_state,
)
from coditect.local.supervisor import POLL_SECONDS, Child, Probe, ProcessSupervisor, Say, guarded, last_lines
from coditect.local.watchdog import kill_marked, new_marker

PROGRAM_STAGE = 10


class Role(StrEnum):
    """The part that a program has in a fleet, by which it gets its secrets."""

    AGENT = "agent"
    DISPATCHER = "dispatcher"
    API = "api"


NEEDED_BY: Mapping[str, tuple[Role, ...]] = {
    "CODITECT_MANAGEMENT_URL": (Role.DISPATCHER, Role.API),
    "CODITECT_APPROVAL_KEY": (Role.DISPATCHER, Role.API),
    "CODITECT_STORE_URL": (Role.DISPATCHER,),
    "FDB_TLS_*": (Role.DISPATCHER,),
    "CODITECT_API_*": (Role.API,),
    "CODITECT_CHAT_*": (Role.AGENT,),
    "CODITECT_A2A_*": (Role.AGENT,),
    "CODITECT_GIT_*": (Role.AGENT,),
}
"""The variables, by name or pattern, that some programs of a fleet need and no other gets; all get the others."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the fleet to start, e.g. an agent.

    The program finds the servers in its environment. With `announces_ready` it counts as ready when it has created the
    file named by ``CODITECT_READY_FILE``; without, when it has run for one second.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    announces_ready: bool = False
    role: Role = Role.AGENT
    ready_within_seconds: float = 120.0
    stop_within_seconds: float = 35.0


@dataclass(frozen=True, slots=True)
class UpPlan:
    """The input of one `up`: its folder, the programs to start, and the addresses of servers that run already.

    A server whose address is given is not started. The programs run in `working_folder`.
    """

    folder: Path
    working_folder: Path
    programs: tuple[Program, ...] = ()
    amqp_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    management_url: str | None = field(default=None, repr=False)
    """The URL of a given broker's management API; a private broker has its own."""


AMQP, REDIS = "CODITECT_AMQP_URL", "CODITECT_REDIS_URL"
MANAGEMENT, API_KEY = "CODITECT_MANAGEMENT_URL", "CODITECT_API_KEY"
LEDGER = "ledger.db"
"""The file of the dispatcher's ledger, beside the servers' data."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """All that one `up` supervises (servers, then programs, as commands to run), and how it is reached."""

    children: tuple[Child, ...]
    variables: Mapping[str, str] = field(repr=False)
    """The servers' addresses, as far as they are known, and the key of the HTTP API, if `up` gave or made one."""


def process_plan(plan: UpPlan, *, environ: Mapping[str, str]) -> ProcessPlan:
    """Return the commands that an `up` runs and its servers' addresses; write the configuration of servers to start.

    For these it also finds the programs on the machine, and chooses free ports.

    Raises:
        MissingServer: a server must be started and is not installed.
    """
    folder = UpFolder(plan.folder)
    children: list[Child] = []
    amqp_url, redis_url, management_url = plan.amqp_url, plan.redis_url, plan.management_url
    if amqp_url is None or redis_url is None:
        addresses, binaries = keep_addresses(folder.servers), find_binaries(environ)
        wanted = WantedServers(rabbitmq=amqp_url is None, redis=redis_url is None, management=has_management(binaries))
        children += server_children(binaries, addresses, wanted, folder=plan.folder, environ=environ)
        if wanted.rabbitmq:
            management_url = addresses.management_url if wanted.management else None
        amqp_url, redis_url = amqp_url or addresses.amqp_url, redis_url or addresses.redis_url
    variables = {AMQP: amqp_url, REDIS: redis_url}
    variables |= {MANAGEMENT: management_url} if management_url is not None else {}
    variables |= _api_key(plan.programs, environ)
    ledger = environ.get("CODITECT_STORE_URL") or f"sqlite:{plan.folder / LEDGER}"
    folder.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = {**environ, **variables, "CODITECT_STORE_URL": ledger}
    children += [_program_child(program, plan, own) for program in plan.programs]
    return ProcessPlan(tuple(children), variables)


def environment_of(role: Role | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a program by its role: without the secrets of other roles.

    None stands for a server, which gets neither Coditect's variables nor FoundationDB's secrets.
    """

    def given(name: str) -> bool:
        if role is None:
            return not name.startswith(("CODITECT_", "FDB_TLS_"))
        return all(role in roles for pattern, roles in NEEDED_BY.items() if fnmatchcase(name, pattern))

    return {name: value for name, value in environ.items() if given(name)}


def _api_key(programs: Iterable[Program], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the key for the API of a fleet; none when no API is started, or the environment says who may use it."""
    if not any(program.role is Role.API for program in programs):
        return {}
    if key := environ.get(API_KEY):
        return {API_KEY: key}
    named = environ.get("CODITECT_API_KEYS") or environ.get("CODITECT_API_OIDC_ISSUER")
    return {} if named else {API_KEY: f"coditect_{token_urlsafe(32)}"}


def require_servers(plan: UpPlan, *, environ: Mapping[str, str]) -> None:
    """Check that every server that an `up` is to start is installed.

    Raises:
        MissingServer: a server is not installed; the error has the command that installs it.
    """
    binaries = find_binaries(environ)
    if plan.amqp_url is None:
        require_rabbitmq(binaries)
    if plan.redis_url is None:
        require_redis(binaries)


@dataclass(frozen=True, slots=True)
class WantedServers:
    """The choice of private servers to start, with their options."""

    rabbitmq: bool = True
    redis: bool = True
    management: bool = False
    """Whether the broker serves its management API."""


def server_children(
    binaries: Binaries, addresses: Addresses, wanted: WantedServers, *, folder: Path, environ: Mapping[str, str]
) -> list[Child]:
    """Write the configuration of each wanted private server below `folder`; return the servers as commands to run."""
    children: list[Child] = []
    environ = environment_of(None, environ)
    if wanted.redis:
        children.append(redis_child(binaries, addresses, folder=folder / "redis", environ=environ))
    if wanted.rabbitmq:
        children += rabbitmq_children(
            binaries, addresses, folder=folder / "rabbitmq", environ=environ, management=wanted.management
        )
    return children


def _program_child(program: Program, plan: UpPlan, environ: Mapping[str, str]) -> Child:
    ready_file = UpFolder(plan.folder).ready_file(program.name)
    return Child(
        name=program.name,
        argv=program.argv,
        env={**environment_of(program.role, {**environ, **program.env}), READY_FILE: str(ready_file)},
        folder=plan.working_folder,
        ready=_file_appears(ready_file) if program.announces_ready else None,
        ready_within_seconds=program.ready_within_seconds,
        stop_within_seconds=program.stop_within_seconds,
        stage=PROGRAM_STAGE,
        ready_file=ready_file,
        umask=-1 if program.role is Role.AGENT else 0o077,  # an agent writes a user's files
    )


def _file_appears(file: Path) -> Probe:
    async def appeared() -> bool:
        return file.exists()  # noqa: ASYNC240 - one stat is not worth a thread

    return appeared


READY_LINE = "ready"
ERROR_PREFIX = "! "
DOWN_WITHIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StopReport:
    """The result of `down`: whether something was up, and the names of the stopped programs."""

    was_up: bool
    stopped: tuple[str, ...] = ()


def up(plan: UpPlan, *, environ: Mapping[str, str], say: Say, ready: Callable[[], None] = lambda: None) -> None:
    """Start the planned servers and programs, call `ready` when all are ready, and supervise them until a signal.

    The signals are SIGINT, SIGTERM and SIGHUP. Runs its own event loop, in the main thread. The remains of a killed
    `up` are stopped first.

    Raises:
        AlreadyUp: another process is up in this folder.
        MissingServer: a server is not installed.
        StartFailed: a program could not be started; nothing is left running.
    """
    folder = UpFolder(plan.folder)
    with hold(folder):
        _reap_remains(folder)
        marker = new_marker()
        try:
            with guarded(marker) as watchdog:
                run_loop(
                    _supervise(process_plan(plan, environ=environ), folder, marker, watchdog, say=say, ready=ready)
                )
        finally:
            forget(folder)


def up_detached(plan: UpPlan, *, environ: Mapping[str, str], say: Say) -> UpState:
    """Start the planned servers and programs under a background supervisor; return its state when all are ready.

    The supervisor outlives the shell and this process. An interrupt of the wait stops the supervisor again.

    Raises:
        AlreadyUp: another process is up in this folder.
        MissingServer: a server is not installed.
        StartFailed: something could not be started, with the last log lines; nothing is left running.
    """
    folder = UpFolder(plan.folder)
    require_servers(plan, environ=environ)
    with hold(folder):
        pass
    folder.log.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder.log / "up.log"
    with open(log, "ab", opener=open_private) as errors:
        starter = subprocess.Popen(
            [sys.executable, "-m", "coditect.local"],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        _await_ready(starter, plan, say=say, log=log)
    except KeyboardInterrupt:
        down(plan.folder)
        raise
    state = read_state(folder)
    if state is None:
        raise StartFailed("The supervisor ended right after its start", log=last_lines(log))
    return state


def down(folder: Path, *, within_seconds: float = DOWN_WITHIN_SECONDS) -> StopReport:
    """Stop what `up` started in the folder, and only that; agents have time to finish their work. Idempotent.

    A supervisor that does not end in time is killed, and everything that it started with it.
    """
    files = UpFolder(folder)
    state = read_state(files)
    if state is None:
        return StopReport(was_up=False)
    names = tuple(child.name for child in state.children if child.process and is_running(child.process))
    _stop_supervisor(state, within_seconds)
    killed = kill_marked(f"{state.marker}:")
    with suppress(AlreadyUp), hold(files):
        forget(files)
    return StopReport(was_up=bool(names) or killed > 0, stopped=names)


def _stop_supervisor(state: UpState, within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    if is_running(state.supervisor):
        os.kill(state.supervisor.pid, signal.SIGTERM)
    while is_running(state.supervisor) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if is_running(state.supervisor):
        os.kill(state.supervisor.pid, signal.SIGKILL)
    while state.watchdog and is_running(state.watchdog) and time.monotonic() < deadline + 15.0:
        time.sleep(POLL_SECONDS)


def _reap_remains(folder: UpFolder) -> None:
    """Kill the programs that a killed supervisor left, if any, and remove the files by which commands find it."""
    state = read_state(folder)
    if state is None:
        return
    kill_marked(f"{state.marker}:")
    for child in state.children:
        if child.process and is_running(child.process):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
    forget(folder)


async def _supervise(
    parts: ProcessPlan, folder: UpFolder, marker: str, watchdog: ProcessId, *, say: Say, ready: Callable[[], None]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    me = identify(os.getpid())
    assert me is not None
    phase = Phase.STARTING

    def changed() -> None:
        write_state(
            folder,
            UpState(
                marker=marker,
                phase=Phase.STOPPING if stop.is_set() else phase,
                supervisor=me,
                amqp_url=parts.variables[AMQP],
                redis_url=parts.variables[REDIS],
                watchdog=watchdog,
                children=supervisor.children,
                management_url=parts.variables.get(MANAGEMENT),
            ),
        )

    def all_ready() -> None:
        nonlocal phase
        phase = Phase.READY
        api_url = folder.address_of("api")
        write_env(folder, {**parts.variables, **({"CODITECT_API_URL": api_url} if api_url else {})})
        changed()
        ready()

    supervisor = ProcessSupervisor(parts.children, marker=marker, log_folder=folder.log, changed=changed, say=say)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    changed()
    await supervisor.run(stop=stop, ready=all_ready)


def _await_ready(starter: subprocess.Popen[bytes], plan: UpPlan, *, say: Say, log: Path) -> None:
    """Send the plan to the background supervisor, and pass its output to `say` until it reports that all is ready.

    Raises:
        StartFailed: when the output ends before that.
    """
    assert starter.stdin is not None and starter.stdout is not None
    with starter.stdout, starter.stdin:
        starter.stdin.write(TypeAdapter(UpPlan).dump_json(plan))
        starter.stdin.close()
        starter.wait()
        errors: list[str] = []
        for raw in starter.stdout:
            line = raw.decode(errors="replace").rstrip()
            if line == READY_LINE:
                return
            if line.startswith(ERROR_PREFIX):
                errors.append(line.removeprefix(ERROR_PREFIX))
            else:
                say(line)
    raise StartFailed("Coditect could not be started", log="\n".join(errors) or last_lines(log))


def serve_detached() -> None:
    """Run the background supervisor: read the plan from stdin, detach by a fork, report on stdout, and supervise."""
    plan = TypeAdapter(UpPlan).validate_json(sys.stdin.buffer.read())
    if os.fork():
        os._exit(0)
    silence = os.open(os.devnull, os.O_RDWR)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def ready() -> None:
        say(READY_LINE)
        os.dup2(silence, sys.stdout.fileno())

    try:
        up(plan, environ=dict(os.environ), say=say, ready=ready)
    except LocalError as error:
        for line in str(error).splitlines():
            say(ERROR_PREFIX + line)
        sys.exit(error.exit_code)
