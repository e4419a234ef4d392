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
import re
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
import json, os, subprocess, sys
import psutil
log, note, *command = sys.argv[1:]
child = subprocess.Popen(
    command, stdin=subprocess.DEVNULL, stdout=open(log, "wb"), stderr=subprocess.STDOUT, start_new_session=True
)
with open(note + ".new", "w") as file:
    json.dump({"pid": child.pid, "started": psutil.Process(child.pid).create_time()}, file)
os.replace(note + ".new", note)
"""
"""Starts the service and notes it, as nobody's child: it outlives the agent, also one that is killed just now."""
_VERSION = re.compile(r"[0-9a-f]{40,64}")


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
        """Return the folder of a version.

        Raises:
            InputError: not retryable; the text is no hash of a commit, and may lead elsewhere.
        """
        if _VERSION.fullmatch(version) is None:
            raise InputError("this is no version of a service", given=version[:100], fix="give the hash of a commit")
        return self.folder / "releases" / version

    def note(self, name: str, text: str) -> str:
        """Keep a text under a name, whole or not at all, unless there is one already; return what is kept."""
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
        draft.rename(place)

    def switch(self, version: str | None) -> None:
        """Make a version the present one by one rename, and restart the service; without one, stop it.

        Raises:
            InputError: not retryable; this is no version.
        """
        link = self.folder / "current"
        folder = None if version is None else self.release_folder(version)
        self.stop()
        if version is None or folder is None:
            link.unlink(missing_ok=True)
            return
        draft = self.folder / f".current-{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("releases") / version)
        draft.replace(link)
        self._start(version, folder)

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

    def _start(self, version: str, folder: Path) -> None:
        environment = clean_environment(os.environ, self.folder) | {"SERVICE_VERSION": version}
        places = [str(self.folder.resolve() / name) for name in ("service.log", "process.json")]
        app = [sys.executable, "app.py", str(self.port)]
        command = [sys.executable, "-I", "-c", _LAUNCH, *places, *app]
        subprocess.run(command, cwd=folder, env=environment, timeout=_STOP_WITHIN_SECONDS * 2, check=True)

    def _process(self) -> psutil.Process | None:
        try:
            known = json.loads((self.folder / "process.json").read_text())
            process = psutil.Process(known["pid"])
            # one that has ended may wait to be buried, where no init does that at once
            ended = process.create_time() != known["started"] or process.status() == psutil.STATUS_ZOMBIE
            return None if ended else process
        except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
            return None  # none was started, or it is gone; or the file is damaged, and names none

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
