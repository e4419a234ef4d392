"""Files that a program finds by looking upwards from its folder, and believes only where no other user can write."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def is_own(path: Path) -> bool:
    """Whether the file is there, this user's, and writable by this user alone; a warning tells of any other."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    if not stat.S_ISREG(found.st_mode):
        return False
    if found.st_uid == os.getuid() and not found.st_mode & _WRITTEN_BY_OTHERS:
        return True
    fix = f"chown {os.getuid()} {path} && chmod 600 {path}, if it is yours; else work in a folder of your own"
    log.warning("A file is not believed: others own it or can write it", extra={"path": str(path), "fix": fix})
    return False


def read_own(path: Path) -> str | None:
    """The text of such a file; None when there is none."""
    return path.read_text() if is_own(path) else None
