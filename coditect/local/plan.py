"""The plan of one `up`: the servers and programs to start, which the background supervisor receives as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from secrets import token_urlsafe
from types import MappingProxyType

from coditect.aio.ready import READY_FILE
from coditect.local.child import Child, Probe
from coditect.local.servers.binaries import Binaries, find_binaries, require_rabbitmq, require_redis
from coditect.local.servers.ports import Addresses, keep_addresses
from coditect.local.servers.rabbitmq import has_management, rabbitmq_children
from coditect.local.servers.redis_server import redis_child
from coditect.local.state import UpFolder
from coditect.settings.settings import store_url

PROGRAM_STAGE = 10


class Role(StrEnum):
    """The part that a program has in a fleet, by which it gets its secrets."""

    AGENT = "agent"
    DISPATCHER = "dispatcher"
    API = "api"


NEEDED_BY: Mapping[str, tuple[Role, ...]] = MappingProxyType(
    {
        "CODITECT_MANAGEMENT_URL": (Role.DISPATCHER, Role.API),
        "CODITECT_APPROVAL_KEY": (Role.DISPATCHER, Role.API),
        "CODITECT_STORE*": (Role.DISPATCHER,),
        "CODITECT_FDB_*": (Role.DISPATCHER,),
        "CODITECT_API_*": (Role.API,),
        "CODITECT_CHAT_*": (Role.AGENT,),
        "CODITECT_A2A_*": (Role.AGENT,),
    }
)
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


LEDGER = "ledger.db"
"""The file of the dispatcher's ledger, beside the servers' data."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """All that one `up` supervises (servers, then programs, as commands to run), and the servers' addresses."""

    amqp_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    children: tuple[Child, ...]
    management_url: str | None = field(default=None, repr=False)
    """The URL of the broker's management API; None when the broker has none, or the URL is not known."""
    api_key: str | None = field(default=None, repr=False)
    """The key of the HTTP API; None when it is not started, or has a file of keys or an issuer alone."""


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
        addresses = keep_addresses(folder.servers)
        binaries = find_binaries(environ)
        wanted = WantedServers(rabbitmq=amqp_url is None, redis=redis_url is None, management=_has_management(binaries))
        children += server_children(binaries, addresses, wanted, folder=plan.folder, environ=environ)
        if wanted.rabbitmq:
            management_url = addresses.management_url if wanted.management else None
        amqp_url, redis_url = amqp_url or addresses.amqp_url, redis_url or addresses.redis_url
    api_key = _api_key(plan.programs, environ)
    urls = {"CODITECT_AMQP_URL": amqp_url, "CODITECT_REDIS_URL": redis_url}
    urls |= {"CODITECT_STORE_URL": store_url(environ) or f"sqlite:{plan.folder / LEDGER}"}
    if management_url is not None:
        urls["CODITECT_MANAGEMENT_URL"] = management_url
    if api_key is not None:
        urls["CODITECT_API_KEY"] = api_key
    folder.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    children += [_program_child(program, plan, {**environ, **urls}) for program in plan.programs]
    return ProcessPlan(amqp_url, redis_url, tuple(children), management_url, api_key)


def environment_of(role: Role | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a program by its role: without the secrets of other roles.

    None stands for a server, which gets none of Coditect's variables.
    """

    def given(name: str) -> bool:
        if role is None:
            return not name.startswith("CODITECT_")
        return all(role in roles for pattern, roles in NEEDED_BY.items() if fnmatchcase(name, pattern))

    return {name: value for name, value in environ.items() if given(name)}


def _api_key(programs: Iterable[Program], environ: Mapping[str, str]) -> str | None:
    """Return the key for the API of a fleet; None when no API is started, or the environment says who may use it."""
    if not any(program.role is Role.API for program in programs):
        return None
    if environ.get("CODITECT_API_KEYS") or environ.get("CODITECT_API_OIDC_ISSUER"):
        return environ.get("CODITECT_API_KEY")
    return environ.get("CODITECT_API_KEY") or f"coditect_{token_urlsafe(32)}"


def _has_management(binaries: Binaries) -> bool:
    return binaries.rabbitmq is not None and has_management(binaries.rabbitmq)


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
