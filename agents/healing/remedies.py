"""The remedies for an unwell service: at most one change for a cause, which does no harm when it is made twice.

Each one says what it did in one sentence. A remedy never ends a process that is not the service's own, and deletes
nothing but the cache.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping

from agents.deployment.service import Service
from agents.healing.causes import Cause

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
    releases = sorted((service.folder / "releases").iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    others = (folder.name for folder in releases if folder.name != present and not folder.name.startswith("."))
    for version in others:
        if not service.refusal(version):
            service.switch(version)
            return f"went back to version {version[:12]}"
    return "nothing: no other version has a configuration that is sound"


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
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    if service.process() is None:
        service.restart()
    return f"deleted {len(files)} files of its cache"


def _nothing(_: Service) -> str:
    return "nothing: no cause was found"


_REMEDIES: Mapping[Cause, Callable[[Service], str]] = {
    Cause.KILLED: _start,
    Cause.CONFIGURATION: _go_back,
    Cause.PORT: _move,
    Cause.DISK: _make_room,
    Cause.FLOOD: _restart,
    Cause.HUNG: _restart,
    Cause.LEAK: _restart,
    Cause.NONE: _nothing,
}
