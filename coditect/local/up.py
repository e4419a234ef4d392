"""`up` and `down`: start the private servers and a fleet, in the foreground or background, and stop exactly those."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from coditect.agent.processes.process import ProcessId, identify, is_running
from coditect.aio.loop import run_loop
from coditect.local.child import POLL_SECONDS, last_lines
from coditect.local.errors import AlreadyUp, LocalError, StartFailed
from coditect.local.plan import ProcessPlan, UpPlan, process_plan, require_servers
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
from coditect.local.supervisor import ProcessSupervisor, Say, guarded
from coditect.local.watchdog import kill_marked, new_marker

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
                amqp_url=parts.amqp_url,
                redis_url=parts.redis_url,
                watchdog=watchdog,
                children=supervisor.children,
                management_url=parts.management_url,
            ),
        )

    def all_ready() -> None:
        nonlocal phase
        phase = Phase.READY
        write_env(
            folder,
            amqp_url=parts.amqp_url,
            redis_url=parts.redis_url,
            management_url=parts.management_url,
            api_url=folder.address_of("api"),
            api_key=parts.api_key,
        )
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
