"""The settings of all programs, read once by each program and passed on as values.

=============================  ==========================  ==============================================
variable                       default                     meaning
=============================  ==========================  ==============================================
CODITECT_AMQP_URL              amqp://localhost:5672/      the broker; `amqps://` for TLS; several with commas
CODITECT_REDIS_URL             redis://localhost:6379/0    the registry; `rediss://`, `redis+sentinel://`
CODITECT_HEARTBEAT_SECONDS     5                           AMQP's heartbeat, 2 to 60
CODITECT_MANAGEMENT_URL        none                        RabbitMQ's management API, to evict dead processes
CODITECT_DECLARE               true                        declare what is missing, or only check
CODITECT_SLOTS                 the agent's own             slots of an agent process, 1 to 10000
CODITECT_WINDOW                500                         unconfirmed publishes at once, 1 to 10000
CODITECT_MAX_SUSPENDED         1000                        tasks that may await another agent, 1 to 100000
CODITECT_DRAIN_SECONDS         30                          how long a drain waits for what runs
CODITECT_WIRE                  direct                      direct frames, or plain: aiormq's own path
CODITECT_REPLY_QUEUE           classic                     quorum for all queues, as in a cluster; or classic
CODITECT_ANSWER_QUEUES         answers*,*answers           queues of others that results may go to, as patterns
CODITECT_HEALTH_PORT           none                        /livez and /readyz on 127.0.0.1
CODITECT_HEALTH_HOST           127.0.0.1                   where the health port listens
CODITECT_STALL_SECONDS         10                          an event loop may stand still for, 0 (no bound) to 3600
CODITECT_LOG_LEVEL             INFO                        DEBUG, INFO, WARNING, ERROR
CODITECT_LOG_FORMAT            auto                        json, human, or auto: human on a terminal
CODITECT_TRACING               off                         otlp: spans go to a collector, see OTEL_* variables
CODITECT_TRACES_PER_SECOND     50                          new traces of a process, 0.001 to 100000
CODITECT_TRACEBACKS            true                        results of failed tasks carry their tracebacks
CODITECT_WORKSPACE             the system's temp folder    where `ctx.workspace` folders are made
CODITECT_BLOB_URL              none                        where values over 1 MiB lie: an fsspec URL
CODITECT_BLOB_MAX_BYTES        67108864                    the largest such value, 1048576 to 1073741824
CODITECT_BEAT_SECONDS          1                           heartbeat to the registry
CODITECT_LEASE_SECONDS         3                           lease in the registry
CODITECT_STORE_URL             sqlite:coditect.db          the dispatcher's ledger; fdb:CLUSTER_FILE for several
CODITECT_FDB_TLS_CERT_FILE     none                        FoundationDB's TLS: the certificate, PEM
CODITECT_FDB_TLS_KEY_FILE      none                        its key, PEM
CODITECT_FDB_TLS_KEY_PASSWORD  none                        the key's password
CODITECT_FDB_TLS_CA_FILE       none                        the authority of the cluster's certificates, PEM
CODITECT_FDB_TLS_VERIFY_PEERS  none                        peers to trust, such as Check.Valid=1
CODITECT_SHARDS                16                          shards of a new ledger, 1 to 1024
CODITECT_KEEP_DAYS             7                           how long workflows are kept after their end, 0 to 3650
CODITECT_KEEP_AUDIT_DAYS       365                         how long entries of the audit trail are kept, 1 to 36500
CODITECT_APPROVAL_POLICY       none                        the approval policy of dispatchers and agents, a file
CODITECT_APPROVAL_KEY          none                        the key that answers to approvals are signed with
=============================  ==========================  ==============================================

A variable missing from the environment is taken from the nearest `.coditect/env` (written by `coditect up`),
looked for in the current folder and above it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coditect.errors import SetupError
from coditect.settings.own_files import is_own, read_own
from coditect.settings.values import choice as _choice
from coditect.settings.values import flag as _flag
from coditect.settings.values import number as _number
from coditect.settings.values import optional as _optional
from coditect.settings.values import whole as _whole
from coditect.wire.addresses.return_addresses import ANSWER_QUEUES

ENV_FILE = Path(".coditect") / "env"


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of a program; a field's environment variable is `CODITECT_` and the field's name."""

    amqp_url: str = field(default="amqp://localhost:5672/", repr=False)
    redis_url: str = field(default="redis://localhost:6379/0", repr=False)
    heartbeat_seconds: int = 5
    management_url: str | None = field(default=None, repr=False)
    declare: bool = True
    slots: int | None = None
    window: int = 500
    max_suspended: int = 1_000
    drain_seconds: float = 30.0
    wire: str = "direct"
    reply_queue: str = "classic"
    answer_queues: str = ANSWER_QUEUES
    health_port: int | None = None
    health_host: str = "127.0.0.1"
    stall_seconds: float = 10.0
    log_level: str = "INFO"
    log_format: str = "auto"
    tracing: str = "off"
    traces_per_second: float = 50.0
    tracebacks: bool = True
    workspace: str | None = None
    blob_url: str | None = field(default=None, repr=False)
    blob_max_bytes: int = 64 * 1024 * 1024
    beat_seconds: float = 1.0
    lease_seconds: float = 3.0
    store_url: str = "sqlite:coditect.db"
    fdb_tls_cert_file: str | None = None
    fdb_tls_key_file: str | None = None
    fdb_tls_key_password: str | None = field(default=None, repr=False)
    fdb_tls_ca_file: str | None = None
    fdb_tls_verify_peers: str | None = None
    shards: int = 16
    keep_days: float = 7.0
    keep_audit_days: float = 365.0
    approval_policy: str | None = None
    approval_key: str | None = field(default=None, repr=False)


DEFAULTS = Settings()


def read_settings(environment: Mapping[str, str] | None = None, *, folder: Path | None = None) -> Settings:
    """Read the settings of the process from its environment, then the nearest `.coditect/env`, then the defaults.

    Raises:
        SetupError: for a value outside its range; the error names the variable.
    """
    values = read_variables(environment, folder=folder)
    return Settings(
        amqp_url=values.get("CODITECT_AMQP_URL", DEFAULTS.amqp_url),
        redis_url=values.get("CODITECT_REDIS_URL", DEFAULTS.redis_url),
        heartbeat_seconds=_whole(values, "CODITECT_HEARTBEAT_SECONDS", DEFAULTS.heartbeat_seconds, 2, 60),
        management_url=values.get("CODITECT_MANAGEMENT_URL") or None,
        declare=_flag(values, "CODITECT_DECLARE", default=True),
        slots=_optional(values, "CODITECT_SLOTS", 1, 10_000),
        window=_whole(values, "CODITECT_WINDOW", DEFAULTS.window, 1, 10_000),
        max_suspended=_whole(values, "CODITECT_MAX_SUSPENDED", DEFAULTS.max_suspended, 1, 100_000),
        drain_seconds=_number(values, "CODITECT_DRAIN_SECONDS", DEFAULTS.drain_seconds, 0, 86_400),
        wire=_choice(values, "CODITECT_WIRE", ("direct", "plain")),
        reply_queue=_choice(values, "CODITECT_REPLY_QUEUE", ("classic", "quorum")),
        answer_queues=values.get("CODITECT_ANSWER_QUEUES", DEFAULTS.answer_queues),
        health_port=_optional(values, "CODITECT_HEALTH_PORT", 0, 65_535),
        health_host=values.get("CODITECT_HEALTH_HOST", DEFAULTS.health_host),
        stall_seconds=_number(values, "CODITECT_STALL_SECONDS", DEFAULTS.stall_seconds, 0, 3_600),
        log_level=_choice(values, "CODITECT_LOG_LEVEL", ("INFO", "DEBUG", "WARNING", "ERROR")),
        log_format=_choice(values, "CODITECT_LOG_FORMAT", ("auto", "json", "human")),
        tracing=_choice(values, "CODITECT_TRACING", ("off", "otlp")),
        traces_per_second=_number(values, "CODITECT_TRACES_PER_SECOND", DEFAULTS.traces_per_second, 0.001, 100_000),
        tracebacks=_flag(values, "CODITECT_TRACEBACKS", default=True),
        workspace=values.get("CODITECT_WORKSPACE"),
        blob_url=values.get("CODITECT_BLOB_URL") or None,
        blob_max_bytes=_whole(values, "CODITECT_BLOB_MAX_BYTES", DEFAULTS.blob_max_bytes, 2**20, 2**30),
        beat_seconds=_number(values, "CODITECT_BEAT_SECONDS", DEFAULTS.beat_seconds, 0.05, 60),
        lease_seconds=_number(values, "CODITECT_LEASE_SECONDS", DEFAULTS.lease_seconds, 0.1, 600),
        store_url=store_url(values) or DEFAULTS.store_url,
        fdb_tls_cert_file=values.get("CODITECT_FDB_TLS_CERT_FILE") or None,
        fdb_tls_key_file=values.get("CODITECT_FDB_TLS_KEY_FILE") or None,
        fdb_tls_key_password=values.get("CODITECT_FDB_TLS_KEY_PASSWORD") or None,
        fdb_tls_ca_file=values.get("CODITECT_FDB_TLS_CA_FILE") or None,
        fdb_tls_verify_peers=_verify_peers(values, "CODITECT_FDB_TLS_VERIFY_PEERS"),
        shards=_whole(values, "CODITECT_SHARDS", DEFAULTS.shards, 1, 1_024),
        keep_days=_number(values, "CODITECT_KEEP_DAYS", DEFAULTS.keep_days, 0, 3_650),
        keep_audit_days=_number(values, "CODITECT_KEEP_AUDIT_DAYS", DEFAULTS.keep_audit_days, 1, 36_500),
        approval_policy=values.get("CODITECT_APPROVAL_POLICY") or None,
        approval_key=values.get("CODITECT_APPROVAL_KEY") or None,
    )


def _verify_peers(values: Mapping[str, str], name: str) -> str | None:
    text = values.get(name) or None
    if text is not None and "check.valid=0" in text.lower().replace(" ", ""):
        raise SetupError("The certificate of a server is always verified", variable=name, fix=f"{name}=Check.Valid=1")
    return text


def read_variables(environment: Mapping[str, str] | None = None, *, folder: Path | None = None) -> dict[str, str]:
    """Return the environment variables, and those `CODITECT_` ones missing there from the nearest `.coditect/env`."""
    own = os.environ if environment is None else environment
    return {**read_env_file(find_env_file(folder or Path.cwd())), **own}


def store_url(environment: Mapping[str, str]) -> str | None:
    """Return the ledger's URL from `CODITECT_STORE_URL`, or from the former name `CODITECT_STORE`; else None."""
    return environment.get("CODITECT_STORE_URL") or environment.get("CODITECT_STORE")


def find_env_file(folder: Path) -> Path | None:
    """Return the nearest `.coditect/env`, from the folder upwards, that only the user can write; else None."""
    return next((place / ENV_FILE for place in (folder, *folder.parents) if is_own(place / ENV_FILE)), None)


def read_env_file(path: Path | None) -> dict[str, str]:
    """Return the variables in a file that `coditect up` wrote; none if others can write the file."""
    text = None if path is None else read_own(path)
    pairs = (line.split("=", 1) for line in (text or "").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs if name.startswith("CODITECT_")}
