"""What is wrong with a service in a folder: the evidence about it, the causes that explain it, and their remedies.

The evidence is its process, port, health, log, disk, memory, configuration and cache. Three methods find a cause in the
same evidence. A remedy makes at most one change, which does no harm when it is made twice.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from http.client import HTTPException
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from agents.deployment.service import Service

CACHE = "data/cache/"
"""The part of a path that shows a file to be one of a service's cache."""
_MEBIBYTE = 1_048_576
_GROWTH_SECONDS = 0.2


class Bounds(BaseModel):
    """The bounds within which a service is well."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_mib: float = 96.0
    """Resident memory of its process."""
    log_mib: float = 1.0
    """Size of its log."""
    log_mib_per_second: float = 0.5
    """Growth of its log."""
    free_mib: float = 0.5
    """Room that is left on its disk."""
    open_files: int = 192
    """Files and sockets that its process has open."""
    new_seconds: float = 600.0
    """How long a release counts as new: errors that first appear in this time are attributed to it."""


class ServiceEvidence(BaseModel):
    """The facts about a service at one instant; a fact that does not exist for its kind keeps its default."""

    model_config = ConfigDict(frozen=True)

    running: bool
    version: str | None = None
    age_seconds: float | None = None
    """How long ago its process was started."""
    frozen: bool = False
    """Whether its process is stopped by a signal, and would go on at another one."""
    memory_mib: float = 0.0
    open_files: int = 0
    port_owner: Literal["service", "other", "free"] = "service"
    """The process that listens at the service's port."""
    answers: bool = True
    """Whether it answers its health check at all, well or not."""
    health: str = ""
    """Why its health check is not passed; empty when it is."""
    log_mib: float = 0.0
    log_mib_per_second: float = 0.0
    free_mib: float | None = None
    """Room on the disk of its data."""
    configuration: str = ""
    """Why the present version's own check refuses its configuration; empty when it does not, or there is no check."""
    released_seconds: float | None = None
    """How long its present version has been in service; None if no earlier one is there to go back to."""
    blames_cache: bool = False
    """Whether its health check, or the end of its log, names a file of its cache."""
    log: str = ""
    """The last line of its log."""
    named: list[str] = []
    """What is wrong by the signs that its operator named; see `signs.py`."""


def glance(service: Service) -> ServiceEvidence:
    """Return the evidence that one look gives: all but the configuration's check and the growth of the log."""
    process = service.process()
    answers, health = _health(service)
    log = service.tail().rpartition("\n")[2]
    return ServiceEvidence(
        version=service.version,
        **_facts_of(process),
        port_owner=_port_owner(service.port, process),
        answers=answers,
        health=health,
        log_mib=_log_bytes(service) / _MEBIBYTE,
        free_mib=_free_bytes(service) / _MEBIBYTE,
        released_seconds=_released_seconds(service),
        blames_cache=CACHE in health or (process is None and CACHE in log),
        log=log,
    )


def examine(service: Service) -> ServiceEvidence:
    """Return all the evidence about a service; takes at least 0.2 s, in which the growth of its log is measured."""
    began, before = time.monotonic(), _log_bytes(service)
    problem = service.refusal(service.version) if service.version is not None else ""
    time.sleep(max(0.0, _GROWTH_SECONDS - (time.monotonic() - began)))
    grown = (_log_bytes(service) - before) / _MEBIBYTE / (time.monotonic() - began)
    return glance(service).model_copy(update={"configuration": problem, "log_mib_per_second": max(0.0, grown)})


def trouble_of(evidence: ServiceEvidence, bounds: Bounds) -> str:
    """Return what is wrong with a service, in one sentence; empty when the service is well."""
    found = [
        "" if evidence.running else f"its process is gone: {evidence.log or 'it left no word'}",
        "" if evidence.port_owner != "other" else "another process listens at its port",
        "its process is stopped by a signal" if evidence.frozen else evidence.health if evidence.running else "",
        f"its configuration is refused: {evidence.configuration}" if evidence.configuration else "",
        _above("its memory is {:.0f} MiB", evidence.memory_mib, bounds.memory_mib),
        _above("its log is {:.1f} MiB", evidence.log_mib, bounds.log_mib),
        _above("its log grows by {:.1f} MiB/s", evidence.log_mib_per_second, bounds.log_mib_per_second),
        _above("it has {:.0f} files open", evidence.open_files, bounds.open_files),
        f"its disk has {evidence.free_mib:.1f} MiB left" if is_full(evidence, bounds) else "",
        *evidence.named,
    ]
    return "; ".join(trouble for trouble in found if trouble)


def is_full(evidence: ServiceEvidence, bounds: Bounds) -> bool:
    """Tell whether the service's disk has too little room left."""
    return evidence.free_mib is not None and evidence.free_mib < bounds.free_mib


def _above(text: str, value: float, bound: float) -> str:
    return text.format(value) if value > bound else ""


def _health(service: Service) -> tuple[bool, str]:
    try:
        health = service.health()
    except ValueError as error:  # it answers with an error
        return True, f"its health check fails: {error}"
    except (OSError, HTTPException) as error:
        return False, f"it does not answer: {type(error).__name__}"
    if health.get("version") != service.version:
        return True, f"another version answers: {str(health.get('version'))[:40]}"
    return True, ""


def _port_owner(port: int, process: psutil.Process | None) -> Literal["service", "other", "free"]:
    if process is not None and _listens(process, port):
        return "service"
    listening = (
        connection.laddr for connection in psutil.net_connections(kind="tcp") if connection.status == psutil.CONN_LISTEN
    )
    return "other" if any(isinstance(at, tuple) and at[1:] == (port,) for at in listening) else "free"


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in process.net_connections()
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _facts_of(process: psutil.Process | None) -> dict[str, Any]:
    """Return the facts that a service's process has, as fields of the evidence."""
    try:
        if process is not None:
            return {
                "running": True,
                "age_seconds": time.time() - process.create_time(),
                "frozen": process.status() == psutil.STATUS_STOPPED,
                "memory_mib": process.memory_info().rss / _MEBIBYTE,
                "open_files": process.num_fds(),
            }
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass  # the process is gone already
    return {"running": process is not None}


def _released_seconds(service: Service) -> float | None:
    try:
        began = (service.folder / "current").lstat().st_mtime
        return max(0.0, time.time() - began) if service.earlier_releases() else None
    except FileNotFoundError:
        return None


def _log_bytes(service: Service) -> int:
    try:
        return (service.folder / "service.log").stat().st_size
    except OSError:
        return 0


def _free_bytes(service: Service) -> int:
    data = service.folder / "data"
    return shutil.disk_usage(data if data.is_dir() else service.folder).free


class Cause(StrEnum):
    """Why a service is not well."""

    KILLED = "process_killed"
    CONFIGURATION = "bad_configuration"
    PORT = "port_taken"
    DISK = "disk_full"
    FLOOD = "log_flood"
    HUNG = "hung"
    LEAK = "memory_leak"
    FROZEN = "frozen"
    """Its process is stopped by a signal."""
    FILES = "too_many_open_files"
    CACHE = "damaged_cache"
    RELEASE = "bad_release"
    """A new version whose configuration is sound answers with errors."""
    NAMED = "named_sign"
    """A sign that its operator named is there, and no other cause explains it."""
    NONE = "none"
    """Nothing is found."""


class Symptom(StrEnum):
    """A sign that a service is unwell: a fact that is not as it should be."""

    GONE = "gone"
    SILENT = "silent"
    FAILING = "failing"
    REFUSED = "refused"
    """Its configuration is refused."""
    TAKEN = "taken"
    """Another process listens at its port."""
    FULL = "full"
    LARGE = "large"
    LOUD = "loud"
    STOPPED = "stopped"
    """Its process is stopped by a signal."""
    MANY = "many"
    """It has many files open."""
    SPOILED = "spoiled"
    """Its error names a file of its cache."""
    WORSE = "worse"
    """It answers with errors since a new release."""
    NAMED = "named"
    """A sign that its operator named is there."""


EXPLAINED: Mapping[Cause, tuple[Symptom, ...]] = {
    Cause.CONFIGURATION: (Symptom.REFUSED, Symptom.GONE, Symptom.FAILING, Symptom.WORSE, Symptom.SILENT, Symptom.NAMED),
    Cause.PORT: (Symptom.TAKEN, Symptom.GONE, Symptom.FAILING, Symptom.SILENT, Symptom.NAMED),
    Cause.DISK: (Symptom.FULL, Symptom.FAILING, Symptom.WORSE, Symptom.GONE, Symptom.NAMED),
    Cause.FLOOD: (Symptom.LOUD, Symptom.FULL, Symptom.NAMED),
    Cause.LEAK: (Symptom.LARGE, Symptom.SILENT, Symptom.NAMED),
    Cause.FILES: (Symptom.MANY, Symptom.SILENT, Symptom.FAILING, Symptom.NAMED),
    Cause.CACHE: (Symptom.SPOILED, Symptom.FAILING, Symptom.WORSE, Symptom.GONE, Symptom.NAMED),
    Cause.FROZEN: (Symptom.STOPPED, Symptom.SILENT, Symptom.NAMED),
    Cause.RELEASE: (Symptom.WORSE, Symptom.FAILING, Symptom.NAMED),
    Cause.HUNG: (Symptom.SILENT, Symptom.NAMED),
    Cause.KILLED: (Symptom.GONE, Symptom.NAMED),
    Cause.NAMED: (Symptom.NAMED,),
    Cause.NONE: (),
}
"""The symptoms that each cause may lead to; a service that cannot begin is silent before it is gone.

The first symptom of a cause is its sign: it always comes with the cause. The first causes are looked for first.
"""
SIGN: Mapping[Cause, Symptom] = {cause: explained[0] for cause, explained in EXPLAINED.items() if explained}
_WEIGHTS = {Symptom.GONE: 1.0, Symptom.SILENT: 1.0, Symptom.FAILING: 0.5}
_HEAVY = 3.0
"""The weight of a symptom that few causes have."""


def symptoms(evidence: ServiceEvidence, bounds: Bounds) -> frozenset[Symptom]:
    """Return the symptoms that the evidence shows, by the bounds within which a service is well."""
    failing = evidence.answers and bool(evidence.health)
    new = evidence.released_seconds is not None and evidence.released_seconds < bounds.new_seconds
    held = {
        Symptom.GONE: not evidence.running,
        Symptom.SILENT: evidence.running and not evidence.answers,
        Symptom.FAILING: failing,
        Symptom.REFUSED: bool(evidence.configuration),
        Symptom.TAKEN: evidence.port_owner == "other",
        Symptom.FULL: is_full(evidence, bounds),
        Symptom.LARGE: evidence.memory_mib > bounds.memory_mib,
        Symptom.LOUD: evidence.log_mib > bounds.log_mib or evidence.log_mib_per_second > bounds.log_mib_per_second,
        Symptom.STOPPED: evidence.frozen,
        Symptom.MANY: evidence.open_files > bounds.open_files,
        Symptom.SPOILED: evidence.blames_cache,
        Symptom.WORSE: failing and new,
        Symptom.NAMED: bool(evidence.named),
    }
    return frozenset(symptom for symptom, holds in held.items() if holds)


def by_rules(found: frozenset[Symptom]) -> Cause:
    """Return the first cause, in a fixed order of causes, whose typical symptom (sign) was found; else NONE."""
    return next((cause for cause, sign in SIGN.items() if sign in found), Cause.NONE)


def by_scores(found: frozenset[Symptom]) -> Cause:
    """Return the cause whose explained symptoms weigh most; one whose typical symptom was not found loses weight."""

    def score(cause: Cause) -> float:
        missing = SIGN[cause] not in found if cause in SIGN else bool(found)
        return sum(_WEIGHTS.get(symptom, _HEAVY) for symptom in found.intersection(EXPLAINED[cause])) - missing * _HEAVY

    return max(EXPLAINED, key=score)


def by_exclusion(found: frozenset[Symptom]) -> Cause:
    """Return, of the causes whose sign was found, the one that leaves the fewest symptoms unexplained; else NONE."""
    left = [cause for cause, sign in SIGN.items() if sign in found]
    return min(
        left, key=lambda cause: (len(found.difference(EXPLAINED[cause])), len(EXPLAINED[cause])), default=Cause.NONE
    )


_IMPATIENT_SECONDS = 1.0


def remedy(service: Service, cause: Cause) -> str:
    """Apply the remedy for a cause to a service, and return in words what was done."""
    return _REMEDIES[cause](service)


def _start(service: Service) -> str:
    if service.process() is not None:
        return "nothing: its process runs"
    service.restart()
    return "started it"


def _restart(service: Service) -> str:
    """Restart the service, which also empties its log."""
    service.restart(patience_seconds=_IMPATIENT_SECONDS)
    return "restarted it"


def _go_back(service: Service) -> str:
    """Start the service as it is if its configuration is sound; else switch to the latest version with a sound one."""
    present = service.version
    if present is not None and not service.refusal(present):
        return _start(service)
    return _switch(service, service.releases())


def _switch_back(service: Service) -> str:
    """Switch to the latest version with a sound configuration of those that were installed before the present one."""
    return _switch(service, service.earlier_releases())


def _switch(service: Service, versions: Sequence[str]) -> str:
    for version in versions:
        if version == service.version:
            continue
        if not service.refusal(version):
            service.switch(version)
            return f"went back to version {version[:12]}"
    return "nothing: no other version has a configuration that is sound"


def _resume(service: Service) -> str:
    process = service.process()
    if process is None:
        return _start(service)
    process.resume()
    return "let its process go on"


def _move(service: Service) -> str:
    """Move the service to a free port, since the process that has taken its port must not be ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    draft = service.folder / f".port-{os.getpid()}"
    draft.write_text(str(port))
    service.stop()
    draft.replace(service.folder / "port")
    service.restart()
    return f"moved it to port {port}"


def _make_room(service: Service) -> str:
    cache = service.folder / "data" / "cache"
    files = list(cache.iterdir()) if cache.is_dir() else []
    for file in files:
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
    if service.process() is None:
        service.restart()
    return f"deleted {len(files)} files of its cache"


_REMEDIES: Mapping[Cause, Callable[[Service], str]] = {
    Cause.KILLED: _start,
    Cause.CONFIGURATION: _go_back,
    Cause.PORT: _move,
    Cause.DISK: _make_room,
    Cause.FLOOD: _restart,
    Cause.HUNG: _restart,
    Cause.LEAK: _restart,
    Cause.FROZEN: _resume,
    Cause.FILES: _restart,
    Cause.CACHE: _make_room,
    Cause.RELEASE: _switch_back,
    Cause.NAMED: _restart,
    Cause.NONE: lambda _: "nothing: no cause was found",
}
