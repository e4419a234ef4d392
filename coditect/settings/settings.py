"""The settings of every program: each is declared here, once, and a program reads its settings once, at its start.

A variable that is missing from the environment is taken from the nearest `.coditect/env`, which `coditect up` writes:
in the current folder or above it. The tables of docs/operations.md are made from the declarations by
``python -m tests.docs.settings_table``. Modules below a program get values, and read no settings.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkstemp
from typing import ClassVar

from coditect.errors import InputError, SetupError
from coditect.model.limits import Rate
from coditect.settings.declaration import (
    FLAG,
    HOST_NAMES,
    TEXT,
    Declared,
    Group,
    Kind,
    choice,
    http_url,
    member,
    number,
    printable,
    setting,
    whole,
)
from coditect.wire.routing import ANSWER_QUEUES

log = logging.getLogger(__name__)

ENV_FILE = Path(".coditect") / "env"
USER, EXPERT = Group.USER, Group.EXPERT
PRIVATE_ADDRESSES = "CODITECT_PRIVATE_ADDRESSES"
LEASE_BEATS = 3
"""The heartbeats in a lease of the registry."""
TRACE = "{trace}"
"""What stands for the id of a trace in `CODITECT_API_TRACE_URL`."""


def _rate(variable: str, text: str) -> Rate:
    try:
        return Rate(text)
    except InputError as error:
        fix = f"{variable}=100/s, or 600/m"
        raise SetupError("A setting is no rate", variable=variable, given=text, fix=fix) from error


PATTERNS = Kind(TEXT.parse, "patterns with `*`, separated by commas")
RATE: Kind[Rate] = Kind(_rate)


def _private(word: str) -> bool:
    """Declare the part of `CODITECT_PRIVATE_ADDRESSES` that is about one use."""
    return setting(
        False,
        member(word, among=("a2a", "git", "http", "webhooks")),
        "Which outgoing requests may go to loopback and private addresses: those to "
        "[A2A agents](a2a.md#what-a-remote-agent-may-do), [Git servers](pr-deployment.md#a-pull-request), "
        "[HTTP agents](http-agents.md#which-urls), [webhooks](api.md#webhooks). Separate the words by commas",
        variable=PRIVATE_ADDRESSES,
        shown="none",
    )


@dataclass(frozen=True, slots=True)
class Settings(Declared):
    """The settings that all programs share."""

    amqp_url: str = setting(
        "amqp://localhost:5672/",
        TEXT,
        "The broker; `amqps://` for [TLS](#addresses-and-tls). Separate the nodes of a cluster by commas: "
        "`amqp://user:password@one:5672/,two:5672,three`. `?heartbeat=5` (2 to 60) sets AMQP's heartbeat in seconds",
        USER,
        secret=True,
    )
    redis_url: str = setting(
        "redis://localhost:6379/0",
        TEXT,
        "The registry, and the dispatcher's [RQ](task-graph.md); `rediss://` for [TLS](#addresses-and-tls). With "
        "Sentinel `redis+sentinel://user:password@one:26379,two:26379/mymaster/0`, or `rediss+sentinel://`, which "
        "also asks the sentinels over TLS",
        USER,
        secret=True,
    )
    store_url: str = setting(
        "sqlite:coditect.db",
        TEXT,
        "The dispatcher's [ledger](store.md): `sqlite:PATH` for one machine, `fdb:CLUSTER_FILE` for several. "
        "`coditect up` keeps it in `.coditect/ledger.db`",
        USER,
    )
    slots: int | None = setting(
        None, whole(1, 10_000), "How many tasks an agent process runs at once", USER, shown="the agent's own"
    )
    log_level: str = setting(
        "INFO", choice("INFO", "DEBUG", "WARNING", "ERROR"), "The least severe [log](#logs) lines to write", USER
    )
    blob_url: str | None = setting(
        None,
        TEXT,
        "Where [values over 1 MiB](large-values.md) are stored: an fsspec URL, the same for all programs",
        USER,
        secret=True,
    )
    management_url: str | None = setting(
        None,
        TEXT,
        "RabbitMQ's [management API](failover.md#eviction). With it, dispatchers evict dead processes and find the "
        "queues they left, and the command line and the API show rates; `https://` for [TLS](#addresses-and-tls)",
        secret=True,
    )
    health_port: int | None = setting(
        None, whole(0, 65_535), "The port of `/livez`, `/readyz` and `/metrics`; 0 takes any free port"
    )
    health_host: str = setting("127.0.0.1", TEXT, "The address on which the health port listens")
    drain_seconds: float = setting(30.0, number(0, 86_400), "How long a drain waits for running tasks")
    declare: bool = setting(True, FLAG, "Declare missing exchanges and queues; `false` only checks them")
    reply_queue: str = setting(
        "classic",
        choice("classic", "quorum"),
        "`quorum` for every program [of a cluster](#a-cluster-of-brokers): all queues are quorum queues",
    )
    log_format: str = setting("auto", choice("auto", "json", "human"), "`auto` is `human` on a terminal, else `json`")
    tracing: str = setting(
        "off", choice("off", "otlp"), "`otlp` sends [spans](tracing.md) to the collector that `OTEL_*` variables name"
    )
    tracebacks: bool = setting(
        True,
        FLAG,
        "Results of failed tasks include their tracebacks. Set `false` if submitters may not see an agent's "
        "internals; its log and dead letters keep the tracebacks",
    )
    workspace: str | None = setting(
        None,
        TEXT,
        "The folder for workspaces of tasks and commands; no other user may be able to write to it",
        shown="the system's temporary folder",
    )
    keep_days: float = setting(
        7.0,
        number(0, 3_650),
        "How long the dispatcher keeps a workflow and its values after its end; "
        "[its key](workflows.md#retention) is kept at most as long",
    )
    keep_audit_days: float = setting(
        365.0,
        number(1, 36_500),
        "How long the dispatcher keeps entries of the [audit trail](approvals.md#the-audit-trail)",
    )
    approval_policy: str | None = setting(
        None,
        TEXT,
        "The file of the [approval policy](approvals.md), YAML or JSON, which dispatchers and agents read at start",
    )
    approval_key: str | None = setting(
        None,
        TEXT,
        "The key that signs [answers to approvals](approvals.md#who-may-answer), 32 characters or more. Give it to "
        "dispatchers, the API and the command line, never to agents",
        secret=True,
    )
    shards: int = setting(16, whole(1, 1_024), "Shards of a new ledger; an existing ledger keeps its number", EXPERT)
    answer_queues: str = setting(
        ANSWER_QUEUES,
        PATTERNS,
        "Queues of foreign publishers to which agents and dispatchers write [results](wire.md#return-addresses)",
        EXPERT,
    )
    blob_max_bytes: int = setting(64 * 1024 * 1024, whole(2**20, 2**30), "The largest value over 1 MiB", EXPERT)
    max_suspended: int = setting(
        1_000, whole(1, 100_000), "Tasks of an agent process that may wait for other agents without a slot", EXPERT
    )
    stall_seconds: float = setting(
        10.0,
        number(0, 3_600),
        "How long an event loop may [block](#health) before its process ends; 0 sets no bound, for a debugger",
        EXPERT,
    )
    beat_seconds: float = setting(
        1.0, number(0.05, 60), "The pause between heartbeats to the registry; a lease there lasts three of them", EXPERT
    )
    lease_seconds: float = 3.0
    """How long a registration lives without a heartbeat; no setting of its own."""


DEFAULTS = Settings()


@dataclass(frozen=True, slots=True)
class ApiSettings(Declared):
    """The settings of the HTTP API, `coditect api`."""

    PREFIX: ClassVar[str] = "CODITECT_API_"

    host: str = setting(
        "127.0.0.1", TEXT, "The address on which the [HTTP API](api.md) listens; addresses of other machines need keys"
    )
    port: int = setting(8009, whole(0, 65_535), "The API's port; 0 takes any free port")
    body_bytes: int = setting(4 * 1024 * 1024, whole(1_024, 2**30), "The largest body of a request", EXPERT)
    keys: str | None = setting(None, TEXT, "The file of [API keys](api.md#who-may-do-what)")
    key: str | None = setting(
        None,
        printable("An API key is too short or no word", shortest=32, fix="CODITECT_API_KEY=$(openssl rand -hex 32)"),
        "One API key with the role admin",
        secret=True,
    )
    hosts: str | None = setting(
        None,
        HOST_NAMES,
        "Names by which clients may reach the API, beside this machine's. If there are keys and no such names, "
        "every name is accepted",
    )
    rate: Rate | None = setting(  # noqa: RUF009 - a `Rate` is immutable
        None,
        RATE,
        "The maximum requests of one caller, such as `100/s` or `600/m`; each API process counts by itself",
    )
    oidc_issuer: str | None = setting(
        None,
        http_url("https://login.example.com/realms/fleet"),
        "The OpenID Connect issuer whose [tokens](api.md#who-may-do-what) are accepted",
    )
    oidc_audience: str = setting("coditect", TEXT, "The audience that its tokens must name")
    oidc_roles: str = setting(
        "roles", TEXT, "The claim with a caller's roles; `realm_access.roles` names a field of a claim"
    )
    webhook_key: str | None = setting(
        None,
        TEXT,
        "The key from which [webhooks](api.md#webhooks)' secrets are derived, 32 characters or more; the same for "
        "all API processes",
        secret=True,
    )
    webhook_private: bool = _private("webhooks")
    trace_url: str | None = setting(
        None,
        http_url(f"http://localhost:16686/trace/{TRACE}", within=TRACE),
        f"Where your tracing tool shows a trace, with `{TRACE}` in place of its id: "
        f"`http://localhost:16686/trace/{TRACE}` for Jaeger",
    )

    @property
    def secured(self) -> bool:
        """Tell whether the API demands a key or a token from its callers."""
        return (self.keys or self.key or self.oidc_issuer) is not None


API_DEFAULTS = ApiSettings()


@dataclass(frozen=True, slots=True)
class HttpAgentSettings(Declared):
    """The settings of the bridge to HTTP agents, in `coditect api`."""

    PREFIX: ClassVar[str] = "CODITECT_HTTP_"

    hosts: str = setting("", HOST_NAMES, "Hosts on which [HTTP agents](http-agents.md) may run", shown="none")
    private: bool = _private("http")
    lease_seconds: float = setting(15.0, number(1, 3_600), "How long a heartbeat of an HTTP agent counts", EXPERT)
    callback_url: str | None = setting(
        None,
        http_url("https://api.example.com"),
        "The URL of this process, or of all API processes, to which HTTP agents post later answers",
        shown="the API's own address",
    )


HTTP_DEFAULTS = HttpAgentSettings()


@dataclass(frozen=True, slots=True)
class ChatSettings(Declared):
    """The settings of the chat endpoint, for programs that ask a language model."""

    PREFIX: ClassVar[str] = "CODITECT_CHAT_"

    url: str | None = setting(
        None, TEXT, "The base URL of an OpenAI-compatible [chat endpoint](chat.md), such as `http://host/v1`", USER
    )
    key: str | None = setting(None, TEXT, "The chat endpoint's API key", USER, secret=True)
    model: str | None = setting(None, TEXT, "The language model to ask", USER)
    seconds: float = setting(
        120.0, number(0.1, 3_600), "The maximum time of a model's answer; a pause within it may take a quarter of that"
    )
    input_price: float = setting(0.0, number(0, 1e6), "The cost of a million input tokens, for budgets of cost", EXPERT)
    output_price: float = setting(
        0.0, number(0, 1e6), "The cost of a million output tokens, for budgets of cost", EXPERT
    )
    max_bytes: int = 16 * 1024 * 1024
    """The maximum size of an answer, as sent; no setting of its own."""


@dataclass(frozen=True, slots=True)
class A2aSettings(Declared):
    """The settings of an agent that passes tasks on to a remote A2A agent, `coditect agent run --a2a`."""

    PREFIX: ClassVar[str] = "CODITECT_A2A_"

    token: str | None = setting(
        None,
        printable("This is no token"),
        "The token or key that a [remote A2A agent](a2a.md) requires",
        secret=True,
    )
    private: bool = _private("a2a")


A2A_DEFAULTS = A2aSettings()


@dataclass(frozen=True, slots=True)
class GitSettings(Declared):
    """The settings of the agents that work with pull requests of a Git server."""

    PREFIX: ClassVar[str] = "CODITECT_GIT_"

    hosts: str = setting("", HOST_NAMES, "Hosts of [Git servers](pr-deployment.md) of pull requests", shown="none")
    private: bool = _private("git")
    token: str = setting(
        "",
        printable("This is no token"),
        "The token for these hosts. It may read code, and write pull requests and commit statuses",
        secret=True,
        shown="none",
    )


@dataclass(frozen=True, slots=True)
class ToolSettings(Declared):
    """The settings of single tools and agents."""

    debug: str = setting(
        "", TEXT, "If set, errors of the command line are tracebacks, and libraries log", USER, shown="none"
    )
    goals: str | None = setting(
        None, TEXT, "A file of [templates](goals.md#with-templates) for goals: `workflow start --goal`, `goal.pursue`"
    )
    patterns: str | None = setting(
        None,
        TEXT,
        "Folders with [workflow patterns](workflow-patterns.md#a-pattern-of-your-own), separated by spaces: "
        "`coditect workflow pattern`, the API",
    )
    fleet_root: str | None = setting(
        None,
        TEXT,
        "The folder into which paths in requests to the agents of `agents/` may lead",
        shown="the working folder",
    )
    ready_file: str | None = setting(
        None,
        TEXT,
        "A file that an agent, a dispatcher, the API or `coditect event tail` creates once it is ready; "
        "`coditect up` sets it",
        EXPERT,
    )
    load_log: str | None = setting(
        None,
        TEXT,
        "The effect log of a load test: `agents/load.py`, `coditect load`",
        EXPERT,
        shown="below `.coditect`",
    )
    rabbitmq_sbin: str | None = setting(
        None,
        TEXT,
        "The folder of the `rabbitmq-server` that private brokers run: `coditect up`, the demo, the tests",
        EXPERT,
        shown="the newest one installed",
    )
    test_servers: str = setting(
        "private",
        choice("private", "containers", "named"),
        "[The servers of a test run](testing.md#on-real-servers); `named` takes those that `CODITECT_AMQP_URL` "
        "and `CODITECT_REDIS_URL` name",
        EXPERT,
    )


DECLARED: tuple[type[Declared], ...] = (
    Settings,
    ApiSettings,
    HttpAgentSettings,
    ChatSettings,
    A2aSettings,
    GitSettings,
    ToolSettings,
)
"""Every class of settings, in the order of the documentation."""

SET_BY_PROGRAMS: Mapping[str, str] = {
    "CODITECT_API_URL": "The API's address, in `.coditect/env`: for `curl` and scripts",
    "CODITECT_TASK_ID": "The task that a [command](programs.md#what-a-command-gets) of an agent executes",
    "CODITECT_CAPABILITY": "That task's capability",
    "CODITECT_ATTEMPT": "The number of the attempt",
    "CODITECT_FENCE": "The attempt's fence",
    "CODITECT_STARTED_BY": "The mark by which `coditect up` finds its processes again; on Linux also the start of "
    "their names in `ps`",
    "CODITECT_PARENT_PID": "The process with which a process of `--processes` ends",
    "CODITECT_BEGAN_FILE": "The file by which a process of `--processes` reports to its parent",
}
"""Variables that no person sets: a program sets them for the processes that it starts."""


def read_settings(environment: Mapping[str, str] | None = None, *, folder: Path | None = None) -> Settings:
    """Read the settings of the process from its environment, then the nearest `.coditect/env`, then the defaults.

    Raises:
        SetupError: for a value outside its range; the error names the variable.
    """
    values = read_variables(environment, folder=folder)
    peers = "FDB_TLS_VERIFY_PEERS"
    if "check.valid=0" in values.get(peers, "").lower().replace(" ", ""):
        raise SetupError("The certificate of a server is always verified", variable=peers, fix=f"{peers}=Check.Valid=1")
    settings = Settings.read(values)
    return replace(settings, lease_seconds=LEASE_BEATS * settings.beat_seconds)


def read_variables(environment: Mapping[str, str] | None = None, *, folder: Path | None = None) -> dict[str, str]:
    """Return the environment variables, and those `CODITECT_` ones missing there from the nearest `.coditect/env`."""
    own = os.environ if environment is None else environment
    return {**read_env_file(find_env_file(folder or Path.cwd())), **own}


# Files that a program believes only if the user owns them and alone can write them, and how it writes such files

_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def find_env_file(folder: Path) -> Path | None:
    """Return the nearest `.coditect/env`, from the folder upwards, that only the user can write; else None."""
    return next((place / ENV_FILE for place in (folder, *folder.parents) if is_own(place / ENV_FILE)), None)


def read_env_file(path: Path | None) -> dict[str, str]:
    """Return the variables in a file that `coditect up` wrote; none if others can write the file."""
    text = None if path is None else read_own(path)
    pairs = (line.split("=", 1) for line in (text or "").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs if name.startswith("CODITECT_")}


def is_own(path: Path, *, or_roots: bool = False) -> bool:
    """Tell whether the user owns a file and alone may write it; log a warning if others own it or may write it.

    A missing file, and a path that is no regular file, give False without a warning. Links are not followed. With
    `or_roots` they are, and the file may be root's, who can write every file anyway: so are files that an administrator
    or Kubernetes hands to a program.
    """
    try:
        if or_roots:
            return _is_believed(path, path.stat(), owners=(os.getuid(), 0))
        os.close(_opened(path))
    except OSError:
        return False
    return True


def read_own(path: Path) -> str | None:
    """Return the text of a file that the user owns and alone can write; None for any other file, and for a link."""
    try:
        with os.fdopen(_opened(path), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def write_own(path: Path, text: str) -> None:
    """Replace a file by `text`, readable by its owner only; a reader sees the old text or the new, never a part.

    The text is written to a new file of a random name first, so that no link or file that is there already gets it.
    """
    number, draft = mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


def _opened(path: Path) -> int:
    """Open a file for reading and return its descriptor, after a check of the opened file and of its folder.

    Raises:
        OSError: when there is no such file, it or its folder is a link, or others own one of them or may write it.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        opened = ((path.parent, folder), (path, file))
        if all(_is_believed(place, os.fstat(number), owners=(os.getuid(),)) for place, number in opened):
            return file
        os.close(file)
        raise PermissionError(path)
    finally:
        os.close(folder)


def _is_believed(path: Path, found: os.stat_result, *, owners: tuple[int, ...]) -> bool:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return False
    if found.st_uid in owners and not found.st_mode & _WRITTEN_BY_OTHERS:
        return True
    fix = f"chown {os.getuid()} {path} && chmod go-w {path}, if it is yours; else work in a folder of your own"
    log.warning("A file is not believed: others own it or can write it", extra={"path": str(path), "fix": fix})
    return False
