"""The services of the healing demo: each has a folder, its first version released and, if possible, a small disk.

A disk is a tmpfs of four megabytes, in a mount namespace of the program: the kernel takes it away with the program's
last process, whatever ends that.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from agents.deployment.service import Service, http_get

TILL = Path(__file__).with_name("till")
FIRST = "v1"
ORDERS = 3
_DISK = "4m"
_NAMESPACE = "HEALING_NAMESPACE"
_WAYS = (("--mount",), ("--user", "--map-root-user", "--mount"))
_WITHIN_SECONDS = 30


def enter_namespace(arguments: Sequence[str]) -> None:
    """Run the module with these arguments again in place of this process, in its own mount namespace, if possible."""
    if _NAMESPACE in os.environ:
        return
    for way in _WAYS:
        command = ["unshare", *way, "--propagation", "private"]
        if _works([*command, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(Path.cwd())]):
            program = [*command, sys.executable, "-m", *arguments]
            os.execvpe(program[0], program, os.environ | {_NAMESPACE: "1"})  # noqa: S606 - the program itself, again


def has_disks() -> bool:
    """Tell whether services get small disks, which can be full: this program is in a mount namespace of its own."""
    return _NAMESPACE in os.environ


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_WITHIN_SECONDS).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def running_till(folder: Path) -> Iterator[Service]:
    """Run a till, the demo's service, with orders in a fresh folder; stop and remove it after."""
    service = Service(folder)
    service.release_folder(FIRST).parent.mkdir(parents=True)
    (folder / "data").mkdir()
    disk = str(folder.resolve() / "data")
    if has_disks():
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", disk], check=True)
    try:
        (folder / "port").write_text(str(_free_port()))
        service.install(FIRST, TILL)
        service.switch(FIRST)
        service.probe(FIRST, within_seconds=_WITHIN_SECONDS)
        for _ in range(ORDERS):
            ask(service, "/order")
        yield service
    finally:
        service.stop(patience_seconds=1)
        if has_disks():
            subprocess.run(["umount", "--lazy", disk], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def ask(service: Service, path: str) -> None:
    """Send a GET request to a service, and wait for the answer, which is ignored; return also when none comes."""
    with suppress(OSError, HTTPException):
        http_get(f"http://127.0.0.1:{service.port}{path}", 1.0)


def orders_of(service: Service) -> int:
    """Return how many orders a till has on its disk."""
    return len((service.folder / "data" / "orders").read_text().splitlines())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
