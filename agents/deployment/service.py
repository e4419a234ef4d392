"""A service with versioned releases: one folder for each version, a link to the present one, and its process.

::

    SERVICE/
      port               the port that it listens at
      releases/VERSION/  a version's files, with `app.py`, which is started as `python app.py PORT`
      current            a link to the present version; a rename replaces it, so it is never missing
      process.json       the process that runs, and its start, by which it is known
      starting.lock      locked while a process is ended or started
      service.log        what it wrote since its start
      data/              what it keeps; all that it can do without is in `data/cache`

The process gets its version as `SERVICE_VERSION`, and answers `/health` with `{"version": ...}`. `app.py` may import
other files and packages of its version, and what is installed beside the agent. A version in whose files `--check`
occurs checks its own configuration when it is started as `python app.py --check`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from threading import Event, Timer
from typing import Any
from urllib.parse import urlsplit

import psutil

from agents.tester import STARTED_BY, clean_environment
from agents.tools.child import end_of, run_program
from coditect.errors import InputError, TaskFailed

_STOP_WITHIN_SECONDS = 5
_LOOK_SECONDS = 0.02
_HEALTH_SECONDS = 1
_MOST_BODY_BYTES = 4 * 1_048_576
_TAIL_CHARACTERS = 1_000
_APP, _CHECK = (sys.executable, "app.py"), "--check"
_CHECK_WITHIN_SECONDS = 10
_LAUNCH = """
import json, os, sys
import psutil
log, known, lock, *command = sys.argv[1:]
begun, begin = os.pipe()  # the end that the child has closes as the service begins, or as the child dies
if os.fork() == 0:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), output, output]):
        os.dup2(file, number)
    with open(f"{known}.new", "w") as draft:
        json.dump({"pid": os.getpid(), "started": psutil.Process().create_time()}, draft)
    os.replace(f"{known}.new", known)
    os.close(int(lock))
    os.execv(command[0], command)
os.close(begin)
os.read(begun, 1)
"""
"""Starts the service so that it is no child of the agent: it outlives the agent, which need not reap it.

The new process writes its pid into `process.json` before it becomes the service, and keeps the starter's lock until
then: the pid of a running service is known even when its starter was killed meanwhile.
"""
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


def outliving(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a process that is to outlive the agent that starts it: it is marked as the fleet's.

    A supervisor ends the processes that carry the mark of an agent that died.
    """
    fleet, marked, _ = environment.get(STARTED_BY, "").partition(":")
    return {**environment, **({STARTED_BY: f"{fleet}:service:"} if marked else {})}


@dataclass(frozen=True, slots=True)
class Service:
    """A service on this machine, known by its folder: its versions, and its process."""

    folder: Path

    @property
    def port(self) -> int:
        """The port that the service listens at.

        Raises:
            InputError: not retryable; the folder is no service.
        """
        try:
            return int((self.folder / "port").read_text())
        except (OSError, ValueError) as error:
            fix = "make the folder, with a file `port` that has a number"
            raise InputError("this is no folder of a service", folder=str(self.folder), fix=fix) from error

    @property
    def version(self) -> str | None:
        """The present version; None before the first release."""
        link = self.folder / "current"
        return link.readlink().name if link.is_symlink() else None

    def release_folder(self, version: str) -> Path:
        """Return the folder of a version.

        Raises:
            InputError: not retryable; the text is no name of a version, and may lead elsewhere.
        """
        if _VERSION.fullmatch(version) is None:
            raise InputError("this is no version of a service", given=version[:100], fix="give a commit's hash")
        return self.folder / "releases" / version

    def releases(self) -> list[str]:
        """Return all versions that are installed, the latest first."""
        folders = [folder for folder in (self.folder / "releases").iterdir() if not folder.name.startswith(".")]
        return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)]

    def earlier_releases(self) -> list[str]:
        """Return the versions that were installed before the present one, the latest first."""
        versions = self.releases()
        return versions[versions.index(self.version) + 1 :] if self.version in versions else []

    def note(self, name: str, text: str) -> str:
        """Write a text atomically into a hidden file of the service, unless the file exists; return the file's text."""
        place = self.folder / f".{name}"
        if not place.exists():
            draft = place.with_name(f"{place.name}-{os.getpid()}")
            draft.write_text(text)
            draft.replace(place)
        return place.read_text()

    def install(self, version: str, files: Path) -> None:
        """Copy a version's files into its folder, which appears whole or not at all; a version that is there stays."""
        place = self.release_folder(version)
        if place.exists():
            return
        draft = place.with_name(f".{version}-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        left_out = shutil.ignore_patterns(".git", "__pycache__")
        shutil.copytree(files, draft, ignore=left_out, symlinks=True)  # which may lead anywhere, also in a circle
        os.utime(draft)  # by which the releases are in order
        draft.rename(place)

    def switch(self, version: str | None) -> None:
        """Switch to a version by an atomic rename, and restart the service; for None, stop it and unset its version.

        Raises:
            InputError: not retryable; there is no such version; nothing was stopped.
        """
        link = self.folder / "current"
        if version is not None and not self.release_folder(version).is_dir():
            raise InputError("the service has no version of this name", given=version, fix="name one in `releases`")
        with self._starting() as lock:
            self.stop()
            if version is None:
                link.unlink(missing_ok=True)
                return
            draft = self.folder / f".current-{os.getpid()}"
            draft.unlink(missing_ok=True)
            draft.symlink_to(Path("releases") / version)
            draft.replace(link)
            self._start(version, lock)

    def restart(self, *, patience_seconds: float = _STOP_WITHIN_SECONDS) -> None:
        """Stop the service, and start its present version again; a service without a release is only stopped."""
        with self._starting() as lock:
            self.stop(patience_seconds=patience_seconds)
            if self.version is not None:
                self._start(self.version, lock)

    def stop(self, *, patience_seconds: float = _STOP_WITHIN_SECONDS) -> None:
        """End the service's process, if there is one, by SIGTERM, and after `patience_seconds` by SIGKILL.

        Raises:
            TaskFailed: the process is there still, seconds after SIGKILL.
        """
        process = self.process()
        if process is None:
            return
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            if not self.ends_within(patience_seconds):
                process.kill()
                if not self.ends_within(_STOP_WITHIN_SECONDS):
                    raise TaskFailed("The service's process does not end", process=process.pid)

    def ends_within(self, seconds: float) -> bool:
        """Wait until the service has no process, and tell whether that came within the time.

        A zombie counts as ended: when init reaps it is no matter of the service.
        """
        end = time.monotonic() + seconds
        while self.process() is not None:
            if time.monotonic() >= end:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    @contextmanager
    def _starting(self) -> Iterator[int]:
        """Hold the lock for stopping and starting the service; yield its file descriptor, which a child may inherit."""
        with (self.folder / "starting.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()

    def refusal(self, version: str) -> str:
        """Return why a version's own check refuses its configuration; empty when it does not, or has no check.

        The check runs as the service does: in its version's folder, with the same interpreter and variables.
        """
        place = self.release_folder(version)
        files = (file for file in place.rglob("*.py") if file.is_file() and not file.is_symlink())
        if not any(_CHECK.encode() in file.read_bytes() for file in files):
            return ""
        try:
            ended = run_program(
                [*_APP, _CHECK],
                seconds=_CHECK_WITHIN_SECONDS,
                most_bytes=_TAIL_CHARACTERS,
                environment=self._environment(version),
                folder=place,
            )
        except subprocess.TimeoutExpired:
            return f"app.py {_CHECK} did not end within {_CHECK_WITHIN_SECONDS} s"
        return "" if ended.code == 0 else (ended.errors.rpartition("\n")[2][:300] or f"exit {ended.code}")

    def _start(self, version: str, lock: int) -> None:
        folder = self.folder.resolve()
        files = [str(folder / "service.log"), str(folder / "process.json")]
        subprocess.run(
            [sys.executable, "-I", "-c", _LAUNCH, *files, str(lock), *_APP, str(self.port)],
            cwd=self.release_folder(version),
            env=self._environment(version),
            pass_fds=[lock],
            timeout=_STOP_WITHIN_SECONDS * 2,
            stdin=subprocess.DEVNULL,
            check=True,
        )

    def _environment(self, version: str) -> dict[str, str]:
        return outliving(clean_environment(os.environ, self.folder)) | {"SERVICE_VERSION": version}

    def process(self) -> psutil.Process | None:
        """Return the service's process; None when there is none, or it has ended."""
        try:
            known = json.loads((self.folder / "process.json").read_text())
            process = psutil.Process(known["pid"])
            # one that has ended may wait to be buried, where no init does that at once
            ended = process.create_time() != known["started"] or process.status() == psutil.STATUS_ZOMBIE
            return None if ended else process
        except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
            return None  # none was started, or it is gone; or the file is damaged, and names none

    def probe(self, version: str, *, within_seconds: float) -> Mapping[str, Any]:
        """Wait until the service answers its health check as this version, and return that answer.

        Raises:
            TaskFailed: it does not within the time, or its process has ended; with the end of its log.
        """
        return wait_for_version(
            version,
            within_seconds=within_seconds,
            health=self.health,
            runs=lambda: self.process() is not None,
            log=self.tail,
        )

    def health(self) -> dict[str, Any]:
        """Request the service's health check once, and return the answer; see `ask_health`."""
        return ask_health(self.port)

    def tail(self) -> str:
        """Return the end of the service's log, at most 1,000 characters."""
        try:
            with (self.folder / "service.log").open("rb") as log:
                return end_of(log, _TAIL_CHARACTERS).strip()
        except OSError:
            return ""


def wait_for_version(
    version: str,
    *,
    within_seconds: float,
    health: Callable[[], dict[str, Any]],
    runs: Callable[[], bool],
    log: Callable[[], str],
    every_seconds: float = _LOOK_SECONDS,
) -> Mapping[str, Any]:
    """Ask for a service's health until it answers as a version, and return that answer.

    Raises:
        TaskFailed: it does not within the time, or it does not run any more; with the end of its log.
    """
    end, last = time.monotonic() + within_seconds, ""
    while time.monotonic() < end:
        try:
            answer = health()
            if answer.get("version") == version:
                return answer
            last = f"it answers as version {answer.get('version')}"
        except (OSError, HTTPException, ValueError) as error:
            last = f"{type(error).__name__}: {error}"
        if not runs():
            last = f"its process has ended: {log().rpartition(chr(10))[2]}"
            break
        time.sleep(every_seconds)
    raise TaskFailed("The service is not well", version=version, why=last, log=log())


def ask_health(port: int) -> dict[str, Any]:
    """Request the health check at a port of this machine once, and return the answer.

    Raises:
        OSError, HTTPException, ValueError: it does not answer within a second, or not as one that is well.
    """
    status, body = http_get(f"http://127.0.0.1:{port}/health", _HEALTH_SECONDS)
    if status != 200:
        raise ValueError(f"status {status}: {body[:200]}")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def http_get(
    url: str, within_seconds: float, *, check: Callable[[str, list[str]], object] = lambda *_: None
) -> tuple[int, str]:
    """Return the status and the text of the answer to a GET; a redirection is an answer.

    `check` is called with the host and its IP address before anything is sent; its errors are raised.

    Raises:
        OSError, HTTPException: it does not answer in time, or not in HTTP.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    tls = ssl.create_default_context() if secure else None
    connection = HTTPSConnection(host, parts.port, context=tls) if secure else HTTPConnection(host, parts.port)
    with closing(connection), socket.create_connection((host, connection.port), timeout=within_seconds) as plain:
        check(host, [plain.getpeername()[0]])
        with _cut_after(plain, within_seconds):
            connection.sock = tls.wrap_socket(plain, server_hostname=host) if tls else plain
            connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BODY_BYTES).decode(errors="replace")


@contextmanager
def _cut_after(connected: socket.socket, seconds: float) -> Iterator[None]:
    """Cut a connection when the block takes longer; a socket's own timeout starts again with each byte.

    Raises:
        TimeoutError: the block took longer; also when it met the cut as another error, or as the end of an answer.
    """
    late = Event()
    with connected.dup() as end:  # the block may close its own, or put TLS around it

        def cut() -> None:
            late.set()
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

        timer = Timer(seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, HTTPException, ValueError) as error:
            if late.is_set():
                raise TimeoutError("the exchange took too long") from error
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise TimeoutError("the exchange took too long")
