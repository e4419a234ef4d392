"""A service with versioned releases: one folder for each version, a link to the present one, and its process.

::

    SERVICE/
      port               the port that it listens at
      releases/VERSION/  a version's files, with `app.py`, which is started as `python app.py PORT`
      current            a link to the present version; a rename replaces it, so it is never missing
      process.json       the process that runs, and its start, by which it is known
      service.log        what it wrote

The process gets its version as `SERVICE_VERSION`, and answers `/health` with `{"version": ...}`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil

from agents.tester import clean_environment
from coditect.errors import InputError, TaskFailed

_STOP_WITHIN_SECONDS = 5
_LOOK_SECONDS = 0.05
_TAIL_CHARACTERS = 1_000
_LAUNCH = """
import subprocess, sys
log = open(sys.argv[1], "wb")
child = subprocess.Popen(
    sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
)
print(child.pid)
"""
"""Starts the service as nobody's child: it outlives the agent, and is not the agent's to bury."""


@dataclass(frozen=True, slots=True)
class Service:
    """The folder of one service."""

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
        """Return the folder of a version."""
        return self.folder / "releases" / version

    def install(self, version: str, files: Path) -> None:
        """Copy a version's files into its folder, which appears whole or not at all; a version that is there stays."""
        place = self.release_folder(version)
        if place.exists():
            return
        draft = place.with_name(f".{version}-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(files, draft, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        draft.rename(place)

    def switch(self, version: str | None) -> None:
        """Make a version the present one by one rename, and restart the service; without one, stop it."""
        link = self.folder / "current"
        self.stop()
        if version is None:
            link.unlink(missing_ok=True)
            return
        draft = self.folder / f".current-{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("releases") / version)
        draft.replace(link)
        self._start(version)

    def stop(self) -> None:
        """End the service's process, if there is one: SIGTERM, and SIGKILL after five seconds."""
        process = self._process()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_WITHIN_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(_STOP_WITHIN_SECONDS)

    def _start(self, version: str) -> None:
        environment = clean_environment(os.environ, self.folder) | {"SERVICE_VERSION": version}
        app = [sys.executable, "app.py", str(self.port)]
        pid = subprocess.check_output(
            [sys.executable, "-I", "-c", _LAUNCH, str(self.folder.resolve() / "service.log"), *app],
            cwd=self.release_folder(version),
            env=environment,
            timeout=_STOP_WITHIN_SECONDS * 2,
        )
        try:
            known = {"pid": int(pid), "started": psutil.Process(int(pid)).create_time()}
        except psutil.NoSuchProcess:
            return  # it ended at once: the probe says so, and why
        (self.folder / "process.json").write_text(json.dumps(known))

    def _process(self) -> psutil.Process | None:
        try:
            known = json.loads((self.folder / "process.json").read_text())
            process = psutil.Process(known["pid"])
            # one that has ended may wait to be buried, where no init does that at once
            ended = process.create_time() != known["started"] or process.status() == psutil.STATUS_ZOMBIE
            return None if ended else process
        except (OSError, psutil.NoSuchProcess):
            return None

    def probe(self, version: str, *, within_seconds: float) -> Mapping[str, Any]:
        """Return what the service says of its health, once it says so for this version.

        Raises:
            TaskFailed: it does not within the time, or its process has ended; with the end of its log.
        """
        end, last = time.monotonic() + within_seconds, ""
        while time.monotonic() < end:
            try:
                told = self._health()
                if told.get("version") == version:
                    return told
                last = f"it answers as version {told.get('version')}"
            except (OSError, HTTPException, ValueError) as error:
                last = f"{type(error).__name__}: {error}"
            if self._process() is None:
                last = f"its process has ended: {self._tail().rpartition(chr(10))[2]}"
                break
            time.sleep(_LOOK_SECONDS)
        raise TaskFailed("The service is not well", version=version, why=last, log=self._tail())

    def _health(self) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            told = json.loads(answer.read(65_536))
        finally:
            connection.close()
        if not isinstance(told, dict):
            raise ValueError("no JSON object")
        return told

    def _tail(self) -> str:
        try:
            return (self.folder / "service.log").read_text(errors="replace")[-_TAIL_CHARACTERS:].strip()
        except OSError:
            return ""
