"""The evidence about a service: its process, port, health, log, disk, memory and configuration, as they are found.

Each fact is measured from outside, and none is what somebody says to have done. `trouble_of` says in words what is not
as it should be; `agents/healing/causes.py` says why.
"""

from __future__ import annotations

import shutil
import time
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

from agents.deployment.service import Service

WATCHED = "watched"
"""The file in a service's folder that puts it under the eyes of the detector; without it, the service is left alone."""

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


class ServiceEvidence(BaseModel):
    """The facts about a service at one instant."""

    model_config = ConfigDict(frozen=True)

    version: str | None
    running: bool
    memory_mib: float
    port_owner: Literal["service", "other", "free"]
    """The process that listens at the service's port."""
    answers: bool
    """Whether it answers its health check at all, well or not."""
    health: str
    """Why its health check is not passed; empty when it is."""
    log_mib: float
    log_mib_per_second: float
    free_mib: float
    """Room on the disk of its data."""
    configuration: str
    """Why the present version's own check refuses its configuration; empty when it does not, or there is no check."""
    log: str
    """The last line of its log."""


def glance(service: Service) -> ServiceEvidence:
    """Return the evidence that one look gives: all but the configuration's check and the growth of the log."""
    process = service.process()
    answers, health = _health(service)
    return ServiceEvidence(
        version=service.version,
        running=process is not None,
        memory_mib=_memory(process) / _MEBIBYTE,
        port_owner=_port_owner(service.port, process),
        answers=answers,
        health=health,
        log_mib=_log_bytes(service) / _MEBIBYTE,
        log_mib_per_second=0.0,
        free_mib=_free_bytes(service) / _MEBIBYTE,
        configuration="",
        log=service.tail().rpartition("\n")[2],
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
        evidence.health if evidence.running else "",
        f"its configuration is refused: {evidence.configuration}" if evidence.configuration else "",
        _above("its memory is {:.0f} MiB", evidence.memory_mib, bounds.memory_mib),
        _above("its log is {:.1f} MiB", evidence.log_mib, bounds.log_mib),
        _above("its log grows by {:.1f} MiB/s", evidence.log_mib_per_second, bounds.log_mib_per_second),
        "" if evidence.free_mib >= bounds.free_mib else f"its disk has {evidence.free_mib:.1f} MiB left",
    ]
    return "; ".join(one for one in found if one)


def watched_below(folder: Path) -> list[Service]:
    """Return the services in a folder that are watched, in order of their names."""
    return [Service(mark.parent) for mark in sorted(folder.glob(f"*/{WATCHED}"))]


def _above(text: str, value: float, bound: float) -> str:
    return text.format(value) if value > bound else ""


def _health(service: Service) -> tuple[bool, str]:
    try:
        told = service.health()
    except ValueError as error:  # it answers with an error
        return True, f"its health check fails: {error}"
    except (OSError, HTTPException) as error:
        return False, f"it does not answer: {type(error).__name__}"
    if told.get("version") != service.version:
        return True, f"another version answers: {str(told.get('version'))[:40]}"
    return True, ""


def _port_owner(port: int, process: psutil.Process | None) -> Literal["service", "other", "free"]:
    if process is not None and _listens(process, port):
        return "service"
    listening = (one.laddr for one in psutil.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN)
    return "other" if any(isinstance(at, tuple) and at[1:] == (port,) for at in listening) else "free"


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in process.net_connections())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _memory(process: psutil.Process | None) -> int:
    try:
        return int(process.memory_info().rss) if process is not None else 0
    except psutil.NoSuchProcess:
        return 0


def _log_bytes(service: Service) -> int:
    try:
        return (service.folder / "service.log").stat().st_size
    except OSError:
        return 0


def _free_bytes(service: Service) -> int:
    data = service.folder / "data"
    return shutil.disk_usage(data if data.is_dir() else service.folder).free
