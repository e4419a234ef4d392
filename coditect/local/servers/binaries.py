"""The search for the programs of RabbitMQ and Redis on the machine.

Debian's ``/usr/sbin/rabbitmq-server`` changes user to ``rabbitmq`` and so cannot run a private broker; the scripts that
it calls can, and are looked for first. ``CODITECT_RABBITMQ_SBIN`` names the folder of another RabbitMQ's scripts; no
other place is looked at then.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coditect.local.errors import INSTALL_SERVERS, MissingServer

RABBITMQ_SBIN = "CODITECT_RABBITMQ_SBIN"
RABBITMQ_PLACES = (
    "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/homebrew/opt/rabbitmq/sbin",
    "usr/local/opt/rabbitmq/sbin",
    "home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
    "opt/rabbitmq*/sbin",
    "usr/local/lib/rabbitmq*/sbin",
)
MORE_FOLDERS = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/opt/homebrew/bin",
    "/opt/homebrew/sbin",
    "/usr/bin",
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """The paths of RabbitMQ, Erlang's port mapper and Redis; None for a program that is not installed."""

    rabbitmq: Path | None
    epmd: Path | None
    redis: Path | None
    rabbitmq_sbin: str | None = None
    """The folder of RabbitMQ's scripts that the environment names; None when the usual places were searched."""


def find_binaries(environ: Mapping[str, str], *, root: Path = Path("/")) -> Binaries:
    """Find RabbitMQ (only in the folder that `environ` names, if any), its port mapper and Redis, in the usual places.

    The usual places are those in which packages install RabbitMQ (the newest in the first such place counts), and PATH.
    """
    folders = [*environ.get("PATH", "").split(os.pathsep), *MORE_FOLDERS]
    sbin = environ.get(RABBITMQ_SBIN) or None
    return Binaries(
        rabbitmq=_find("rabbitmq-server", [sbin]) if sbin else _find_rabbitmq(folders, root),
        epmd=_find("epmd", [sbin, *folders] if sbin else folders) or _epmd_in_erlang(root),
        redis=_find("redis-server", folders) or _find("valkey-server", folders),
        rabbitmq_sbin=sbin,
    )


def require_rabbitmq(found: Binaries) -> tuple[Path, Path]:
    """Return the paths of RabbitMQ and of Erlang's port mapper, which must be installed.

    Raises:
        MissingServer: one of them is not installed, or not in the folder that was named.
    """
    if found.rabbitmq is None and found.rabbitmq_sbin is not None:
        raise MissingServer(
            "There is no RabbitMQ in this folder",
            folder=found.rabbitmq_sbin,
            fix=f"Have {RABBITMQ_SBIN} name the folder of its rabbitmq-server, or unset it",
        )
    if found.rabbitmq is None or found.epmd is None:
        raise MissingServer("RabbitMQ is not installed", fix=INSTALL_SERVERS)
    return found.rabbitmq, found.epmd


def require_redis(found: Binaries) -> Path:
    """Return the path of Redis' server program, which must be installed.

    Raises:
        MissingServer: Redis is not installed.
    """
    if found.redis is None:
        raise MissingServer("Redis is not installed", fix=INSTALL_SERVERS)
    return found.redis


def versions(found: Binaries) -> tuple[str, str]:
    """Return the names and versions of RabbitMQ and Redis as text; the broker's version is in its folder's name."""
    return (
        _named("RabbitMQ", found.rabbitmq, lambda path: str(path.resolve().parent.parent.name)),
        _named("Redis", found.redis, lambda path: subprocess.check_output([path, "--version"], text=True)),
    )


def _named(name: str, program: Path | None, text_of: Callable[[Path], str]) -> str:
    if program is None:
        return f"{name} (not installed)"
    version = re.search(r"\d+(\.\d+)+", text_of(program))
    return f"{name} {version[0]}" if version else name


def _find(name: str, folders: Iterable[str]) -> Path | None:
    found = shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


def _find_rabbitmq(folders: Iterable[str], root: Path) -> Path | None:
    for place in RABBITMQ_PLACES:
        scripts = sorted(root.glob(f"{place}/rabbitmq-server"), key=_version_order)
        if scripts:
            return scripts[-1]
    script = _find("rabbitmq-server", folders)
    # A wrapper stands alone; the real script has its environment beside it.
    return script if script and (script.resolve().parent / "rabbitmq-env").exists() else None


def _version_order(script: Path) -> list[int]:
    return [int(digits) for digits in "".join(c if c.isdigit() else " " for c in str(script)).split()]


def _epmd_in_erlang(root: Path) -> Path | None:
    return next(iter(sorted(root.glob("usr/lib*/erlang/erts-*/bin/epmd"), key=_version_order, reverse=True)), None)
