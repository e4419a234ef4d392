"""The folders in which handlers and commands work: one for each attempt, removed at its end.

::

    <base>/                       CODITECT_WORKSPACE, or the system's temporary folder
        coditect-work-<random>/   of one agent process, 0700, there while the process has a workspace
            lock                  locked by the process
            task-<random>/        a workspace

The lock ends with the process, also by SIGKILL: an agent that starts removes the folders whose lock no process holds.
No other user can put a folder of theirs in place of one of these: the name is new, and every level above it is checked.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from coditect.errors import SetupError

log = logging.getLogger(__name__)

WORKSPACE_PREFIX = "coditect-work-"
_LOCK = "lock"
MAX_TRIES = 20
"""The number of tries to make a workspace while its folder is removed by something else."""
_MAX_LINKS = 40
_SEARCH = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
"""How a level is opened: on Linux, one that the user may search but not list, such as /home, can be opened, too."""
_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class WorkspaceUnusable(SetupError):
    """The error when there can be no workspace on this machine, as on a full disk, or another user could change it.

    Retryable: an agent on another machine may take the next attempt.
    """

    retryable = True


class Workspaces:
    """The workspaces of one agent process, below a folder; for any thread, since each call blocks for file access."""

    def __init__(self, base: Path | str | None = None) -> None:
        self._base = base
        self._checked: Path | None = None
        self._mutex = Lock()
        self._folder: Path | None = None
        self._lock = -1
        self._made: set[Path] = set()

    def make(self) -> Path:
        """Make an empty folder that only this user can use, and return its path; pass it to `remove` later.

        Raises:
            WorkspaceUnusable: when there can be no folder, or another user could change it; retryable.
        """
        with self._mutex:
            for tries_left in reversed(range(MAX_TRIES)):
                try:
                    if self._folder is None or not _is_at(self._lock, self._folder / _LOCK):
                        self._close()  # a cleaner of temporary files has been there
                        self._checked = self._checked or _base(self._base)
                        self._folder, self._lock = _locked_folder(self._checked)
                    made = Path(tempfile.mkdtemp(prefix="task-", dir=self._folder))
                except OSError as error:
                    self._checked = None
                    if not (tries_left and isinstance(error, FileNotFoundError)):
                        raise _unusable(self._base, str(error)) from error
                else:
                    self._made.add(made)
                    return made
        raise AssertionError("unreachable: the last try raises")

    def remove(self, folder: Path) -> None:
        """Remove a workspace with all that is in it; a workspace that is gone is no error."""
        remove_folder(folder)
        with self._mutex:
            self._made.discard(folder)
            if folder.parent != self._folder:
                with suppress(OSError):
                    folder.parent.rmdir()
            if not self._made:
                self._close()

    def sweep(self) -> None:
        """Remove the workspaces of processes that have ended.

        Raises:
            WorkspaceUnusable: when the folder above them cannot be used, or another user could change it.
        """
        base = _base(self._base)
        try:
            left = [Path(entry.path) for entry in os.scandir(base) if _is_ours(entry)]
        except OSError as error:
            raise _unusable(base, str(error)) from error
        swept = sum(map(_swept, left))
        if swept:
            log.info("Workspaces of ended agents are removed", extra={"folder": str(base), "number": swept})

    def close(self) -> None:
        """Remove all workspaces that are left."""
        with self._mutex:
            for folder in self._made:
                remove_folder(folder)
            self._made.clear()
            self._close()

    def _close(self) -> None:
        if self._folder is not None:
            if not self._made:
                with suppress(OSError):
                    (self._folder / _LOCK).unlink()
                    self._folder.rmdir()
            os.close(self._lock)
            self._folder = None


def _locked_folder(base: Path) -> tuple[Path, int]:
    """Make a process's folder, and return it with its locked file; repeat that if another process sweeps it first."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=WORKSPACE_PREFIX, dir=base))
        try:
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_at(lock, folder / _LOCK):
            return folder, lock
        os.close(lock)


def _swept(folder: Path) -> bool:
    """Remove the folder of a process that has ended; tell whether it was one."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        with suppress(OSError):
            folder.rmdir()  # its process was killed before it made the file, or makes another folder now
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(lock, folder / _LOCK):
            return False
        for path in folder.iterdir():
            if path.name != _LOCK:  # the last one, so that a sweep that is killed is repeated
                remove_folder(path)
        remove_folder(folder)
    except OSError:
        return False  # its process lives, or another process sweeps it
    finally:
        os.close(lock)
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _is_ours(entry: os.DirEntry[str]) -> bool:
    with suppress(FileNotFoundError):
        return (
            entry.name.startswith(WORKSPACE_PREFIX)
            and entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.getuid()
        )
    return False


def remove_folder(folder: Path) -> None:
    """Remove a folder or file, even if its permissions forbid it; what cannot be removed is logged, and stays."""

    def retry(_call: Callable[..., Any], path: str, _error: Any) -> None:
        place = Path(path)
        try:
            if place != folder:
                place.parent.chmod(0o700)
            if place.is_symlink() or not place.is_dir():
                place.unlink()
            else:
                place.chmod(0o700)
                shutil.rmtree(place)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("A workspace could not be removed", extra={"folder": path, "reason": str(error)})

    shutil.rmtree(folder, onerror=retry)


def _base(folder: Path | str | None) -> Path:
    """Return the folder that has the processes' folders, checked, and made if it is missing.

    Raises:
        WorkspaceUnusable: when another user could change it or a level above it.
    """
    try:
        path = Path(folder or tempfile.gettempdir()).absolute()
        os.close(_opened(path))
    except OSError as error:
        raise _unusable(folder, str(error)) from error
    return path


def _opened(path: Path) -> int:
    """Open a folder from the root downwards, make what is missing, and check each level and link.

    Raises:
        WorkspaceUnusable: when another user could change a level.
        OSError: when a level cannot be opened or made.
    """
    links, left = 0, list(reversed(path.parts))
    fd, place = os.open(left.pop(), _SEARCH), Path("/")
    try:
        _check(fd, fd, place)
        while left:
            name = left.pop()
            if (link := _link_at(fd, name, place)) is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                left.extend(reversed(link.parts))
                continue
            below = _folder_at(fd, name)
            above, fd, place = fd, below, Path(os.path.normpath(place / name))
            try:
                _check(fd, above, place)
            finally:
                os.close(above)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _folder_at(fd: int, name: str) -> int:
    """Open a folder in another one, without following a link; make it first if it is missing."""
    if name == "/":
        return os.open(name, _SEARCH)
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=fd)
    return os.open(name, _SEARCH | os.O_NOFOLLOW, dir_fd=fd)


def _link_at(fd: int, name: str, place: Path) -> Path | None:
    """Return the target of root's or the user's own link in a folder; None for anything but a link."""
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISLNK(found.st_mode):
        return None
    if found.st_uid not in (0, os.getuid()):
        raise _unusable(place / name, "it is a link of another user")
    return Path(os.readlink(name, dir_fd=fd))


def _check(fd: int, above: int, place: Path) -> None:
    """Check that only root and this user can rename or replace what they own in an open folder."""
    found = os.fstat(fd)
    if found.st_uid not in (0, os.getuid()):
        raise _unusable(place, "it belongs to another user")
    if found.st_mode & _WRITTEN_BY_OTHERS and not found.st_mode & stat.S_ISVTX:
        if found.st_dev == os.fstat(above).st_dev:
            raise _unusable(place, f"other users can write it: chmod go-w {place}")
        log.warning("Other users can write the volume of the workspaces", extra={"folder": str(place)})  # as of a pod


def _unusable(path: Path | str | None, reason: str) -> WorkspaceUnusable:
    fix = "set CODITECT_WORKSPACE to a folder of your own, which no other user can write"
    return WorkspaceUnusable("The folder for workspaces cannot be used", folder=str(path or ""), reason=reason, fix=fix)
