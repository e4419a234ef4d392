"""The faults that the healing demo really causes in a service, with random details that a seed decides.

A fault is done to the process, the port, the disk or the files, from outside; no agent learns which one it was.
"""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random

from agents.demo.healing.ward import FIRST, TILL, ask, has_disks
from agents.deployment.service import Service

Inject = Callable[[Service, Random], subprocess.Popen[bytes] | None]

_SQUATTER = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("taken", flush=True)
    time.sleep(3_600)
"""
_FILE_BYTES, _MOST_FILES = 262_144, 64


def kill(service: Service, random: Random) -> None:
    """End the service's process by a random signal: SIGKILL, SIGSEGV or SIGABRT."""
    process = service.process()
    assert process is not None
    process.send_signal(random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]))
    assert service.ends_within(5)


def deploy_bad_settings(service: Service, random: Random) -> None:
    """Release a version whose settings are wrong: it dies at its start, or answers with errors."""
    good = json.loads((TILL / "settings.json").read_text())
    bad = random.choice(
        [
            json.dumps(good)[:-3],
            json.dumps({"prices": good["prices"]}),
            json.dumps(good | {"prices": {"tea": "2.50"}}),
        ]
    )
    _release(service, {"settings.json": bad})


def deploy_bug(service: Service, random: Random) -> None:
    """Release a version that passes its own check, and answers its health check with an error: a bug in its code."""
    right, wrong = random.choice(
        [
            ("sum(self.prices.values())", "sum(self.prices)"),
            ("sum(self.prices.values())", "sum(self.prices.values()) // len(self.leaked)"),
            ('DATA / "probe"', 'DATA / "probes" / "probe"'),
        ]
    )
    app = (TILL / "app.py").read_text()
    assert right in app
    _release(service, {"app.py": app.replace(right, wrong)})


def _release(service: Service, changed: Mapping[str, str]) -> None:
    """Release the version `v2` of the till, in which some files have other texts."""
    draft = service.folder / "draft"
    shutil.copytree(TILL, draft)
    for name, text in changed.items():
        (draft / name).write_text(text)
    service.install("v2", draft)
    service.switch("v2")
    shutil.rmtree(draft)


def freeze(service: Service, _: Random) -> None:
    """Stop the service's process by SIGSTOP, as a debugger or a shell's Ctrl-Z does."""
    process = service.process()
    assert process is not None
    process.suspend()


def damage_cache(service: Service, random: Random) -> None:
    """Write a receipt into the service's cache whose end is missing, as a crash amid a write leaves it."""
    cache = service.folder / "data" / "cache"
    cache.mkdir()
    receipt = json.dumps({"tea": 250, "cake": 320})
    (cache / "receipt-1.json").write_text(receipt)
    (cache / "receipt-2.json").write_text(receipt[: random.randrange(1, len(receipt))])


def take_port(service: Service, _: Random) -> subprocess.Popen[bytes]:
    """Restart the service while another process listens at its port; return that process."""
    service.stop()
    squatter = subprocess.Popen(
        [sys.executable, "-I", "-c", _SQUATTER, str(service.port)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert squatter.stdout is not None
    squatter.stdout.readline()
    service.restart()
    return squatter


def fill_disk(service: Service, random: Random) -> None:
    """Write into the service's cache until its disk, which must be a small one of its own, is full."""
    data = service.folder / "data"
    assert data.is_mount()
    (data / "cache").mkdir()
    with _full_is_well():
        for number in range(_MOST_FILES):
            (data / "cache" / f"export-{number}").write_bytes(random.randbytes(_FILE_BYTES))


@contextmanager
def _full_is_well() -> Iterator[None]:
    """Suppress the error that the disk is full (ENOSPC), which then ends the block; raise any other error."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def meet_bug(path: str) -> Inject:
    """Return a function that injects a fault: it sets off a bug of the service by a request to a path."""
    return lambda service, _: ask(service, path)


FAULTS: Mapping[str, Inject] = {
    "process killed": kill,
    "bad configuration": deploy_bad_settings,
    "port taken": take_port,
    "disk full": fill_disk,
    "log flood": meet_bug("/bugs/flood"),
    "event loop hung": meet_bug("/bugs/hang"),
    "memory leak": meet_bug("/bugs/leak"),
    "open files": meet_bug("/bugs/files"),
    "process frozen": freeze,
    "cache damaged": damage_cache,
    "bad release": deploy_bug,
}


def possible_faults() -> tuple[str, ...]:
    """Return the kinds of faults that can be made here: a full disk needs a disk that is small."""
    return tuple(kind for kind in FAULTS if kind != "disk full" or has_disks())


@contextmanager
def injected(kind: str, service: Service, random: Random) -> Iterator[None]:
    """Inject a fault, and after the block kill the process that the fault started, if it started one."""
    other = FAULTS[kind](service, random)
    try:
        yield
    finally:
        if other is not None:
            with other:
                other.kill()


def break_all_versions(service: Service) -> None:
    """Break the settings of every version and kill the process: nothing that an agent may do mends that."""
    for version in sorted((service.folder / "releases").iterdir()):
        (version / "settings.json").write_text("{")
    kill(service, Random(FIRST))  # noqa: S311 - any signal will do
