"""Files in the current folder or above, which a program believes only if no other user can write them."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def is_own(path: Path, *, or_roots: bool = False) -> bool:
    """Tell whether the user owns a file and alone may write it; log a warning if others own it or may write it.

    A missing file, and a path that is no regular file, give False without a warning. Links are not followed. With
    `or_roots` they are, and the file may be root's, who can write every file anyway: so are files that an administrator
    or Kubernetes hands to a program.
    """
    try:
        if or_roots:
            return _is_believed(path, path.stat(), owners=(os.getuid(), 0))
        os.close(_opened(path))
    except OSError:
        return False
    return True


def read_own(path: Path) -> str | None:
    """Return the text of a file that the user owns and alone can write; None for any other file, and for a link."""
    try:
        with os.fdopen(_opened(path), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def _opened(path: Path) -> int:
    """Open a file for reading and return its descriptor, after a check of the opened file and of its folder.

    Raises:
        OSError: when there is no such file, it or its folder is a link, or others own one of them or may write it.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        opened = ((path.parent, folder), (path, file))
        if all(_is_believed(one, os.fstat(number), owners=(os.getuid(),)) for one, number in opened):
            return file
        os.close(file)
        raise PermissionError(path)
    finally:
        os.close(folder)


def _is_believed(path: Path, found: os.stat_result, *, owners: tuple[int, ...]) -> bool:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return False
    if found.st_uid in owners and not found.st_mode & _WRITTEN_BY_OTHERS:
        return True
    fix = f"chown {os.getuid()} {path} && chmod go-w {path}, if it is yours; else work in a folder of your own"
    log.warning("A file is not believed: others own it or can write it", extra={"path": str(path), "fix": fix})
    return False
