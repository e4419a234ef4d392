"""The checks of `coditect doctor`: what is missing, unreachable or stale on the machine, and what to do about it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coditect.aio import loop
from coditect.aio.loop import run_loop
from coditect.broker.management import Management
from coditect.errors import CoditectError, install_command
from coditect.local.errors import INSTALL_SERVERS, ServerUnreachable
from coditect.local.probe import broker_version, usable_redis_version
from coditect.local.servers import RABBITMQ_SBIN, Binaries, find_binaries
from coditect.local.state import Phase, UpFolder, UpState, read_state
from coditect.wire import json

PYTHON_AT_LEAST = (3, 11)
RABBITMQ_AT_LEAST = (3, 10)
REDIS_AT_LEAST = (7, 0)
FREE_BYTES_AT_LEAST = 1_000_000_000

VersionOf = Callable[[str], Awaitable[str]]
SignIn = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check by `coditect doctor`; `fix` is the remedy when it is not `ok`, or empty if unknown."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def doctor(
    folder: Path,
    *,
    environ: Mapping[str, str],
    amqp_url: str | None = None,
    redis_url: str | None = None,
    management_url: str | None = None,
    sign_in: SignIn | None = None,
) -> list[Check]:
    """Check everything that `up` and the programs need, and return the results; start nothing.

    Nothing is changed: only two keys, which are removed again, show that Redis takes writes.

    A server without a given address is checked at the address of a running `up` in `folder`; without an `up` it has no
    address. The broker passes only when `sign_in`, if it is given, raises nothing. Runs its own event loop.
    """
    files = UpFolder(folder)
    state = read_state(files)
    binaries = find_binaries(environ)
    if state is not None and state.running:
        amqp_url, redis_url = amqp_url or state.amqp_url, redis_url or state.redis_url
        management_url = management_url or state.management_url
    return [
        check_python(),
        check_speed({"uvloop": loop.uvloop, "orjson": json.orjson}),
        _check_rabbitmq_installed(binaries, needed=amqp_url is None),
        _check_installed("redis-server", binaries.redis, needed=redis_url is None),
        check_disk(folder),
        check_up(files, state),
        run_loop(check_server("broker", amqp_url, broker_version, RABBITMQ_AT_LEAST, sign_in=sign_in)),
        run_loop(check_server("redis", redis_url, usable_redis_version, REDIS_AT_LEAST)),
        run_loop(check_eviction(management_url)),
    ]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Check whether the running Python is new enough."""
    fix = "" if version >= PYTHON_AT_LEAST else "Install Python 3.11 or newer and run `make setup`"
    return Check("python", not fix, ".".join(map(str, version)), fix)


def check_speed(parts: Mapping[str, Any]) -> Check:
    """Report which packages of the `speed` extra are in use; everything works without them, only slower."""
    used = [f"{name} {part.__version__}" for name, part in parts.items() if part is not None]
    missing = [name for name, part in parts.items() if part is None]
    hint = f"without {', '.join(missing)} ({install_command('speed')})" if missing else ""
    return Check("speed", True, ", ".join([*used, *filter(None, [hint])]))


def check_disk(folder: Path) -> Check:
    """Check whether the disk of `folder` has 1 GB free, because a broker without disk space takes no messages."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    fix = "" if free >= FREE_BYTES_AT_LEAST else f"Free some space on the disk of {place}: 1 GB is needed"
    return Check("disk", not fix, f"{free / 1e9:.1f} GB free", fix)


def check_up(files: UpFolder, state: UpState | None) -> Check:
    """Check that `up` left no stale files behind, and, while it runs, that every program is ready."""
    if state is None:
        if files.path.is_dir() and files.path.stat().st_uid != os.geteuid():
            return Check("up", False, f"another user owns {files.path}", "Work as this user, or in another folder")
        stale = files.env.exists()
        fix = f"Remove {files.env}, or run `coditect up`" if stale else ""
        return Check("up", not stale, "an address file of servers that do not run" if stale else "not up", fix)
    if not state.running:
        return Check("up", False, "was killed; its files are stale", "Run `coditect up` or `coditect down`")
    behind = [f"{child.name} is {child.phase}" for child in state.children if child.phase is not Phase.READY]
    restarts = sum(child.restarts for child in state.children)
    detail = f"{state.phase}, {len(state.children)} programs, {restarts} restarts, pid {state.supervisor.pid}"
    fix = f"Look into {files.log}" if behind else ""
    return Check("up", not behind, ", ".join([detail, *behind]), fix)


async def check_server(
    name: str, url: str | None, version_of: VersionOf, at_least: tuple[int, ...], *, sign_in: SignIn | None = None
) -> Check:
    """Check whether a server answers at a URL, is new enough and, if a function `sign_in` is given, passes it too."""
    if url is None:
        return Check(name, False, "no address", "Run `coditect up`, or set CODITECT_AMQP_URL and CODITECT_REDIS_URL")
    try:
        version = await version_of(url)
        if sign_in is not None:
            await sign_in(url)
    except ServerUnreachable as error:
        return Check(name, False, str(error), "Start it, or run `coditect up` for a private one")
    except CoditectError as error:
        return Check(name, False, error.sentence, str(error.facts.get("fix", "")))
    supported = tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= at_least
    needed = ".".join(map(str, at_least))
    return Check(name, supported, f"version {version}", "" if supported else f"Install version {needed} or newer")


async def check_eviction(url: str | None) -> Check:
    """Check whether the management API lets dispatchers close frozen processes' connections; passes without a URL.

    Where they cannot, the tasks of these return later.
    """
    if url is None:
        return Check("eviction", True, "not possible without CODITECT_MANAGEMENT_URL: frozen agents hold tasks 15 s")
    try:
        version = await Management(url).closing_version()
    except CoditectError as error:
        unset = "Enable it (rabbitmq-plugins enable rabbitmq_management), and set CODITECT_MANAGEMENT_URL to it"
        reason = f" ({error.facts['reason']})" if "reason" in error.facts else ""
        return Check("eviction", False, f"{error.sentence}{reason}", str(error.facts.get("fix", unset)))
    return Check("eviction", True, f"possible, by the management API of version {version}")


def _check_rabbitmq_installed(binaries: Binaries, *, needed: bool) -> Check:
    found = binaries.rabbitmq if binaries.epmd else None
    if found is None and binaries.rabbitmq_sbin:
        detail = f"not in {binaries.rabbitmq_sbin}"
        return Check("rabbitmq-server", False, detail, f"Have {RABBITMQ_SBIN} name its folder, or unset it")
    return _check_installed("rabbitmq-server", found, needed=needed)


def _check_installed(name: str, found: Path | None, *, needed: bool) -> Check:
    if found:
        return Check(name, True, str(found))
    return Check(name, not needed, "not installed", f"Install it:\n{INSTALL_SERVERS}" if needed else "")
