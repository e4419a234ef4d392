"""Files in the current folder or above, which a program trusts only if no other user can write them."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def is_own(path: Path, *, or_roots: bool = False) -> bool:
    """Tell whether the user owns a file and alone may write it; log a warning if others own it or may write it.

    A missing file, and a path that is no regular file, give False without a warning. With `or_roots` the file may be
    root's, who can write every file anyway: so are files that an administrator or Kubernetes hands to a program.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    if not stat.S_ISREG(found.st_mode):
        return False
    owners = (os.getuid(), 0) if or_roots else (os.getuid(),)
    if found.st_uid in owners and not found.st_mode & _WRITTEN_BY_OTHERS:
        return True
    fix = f"chown {os.getuid()} {path} && chmod 600 {path}, if it is yours; else work in a folder of your own"
    log.warning("A file is not believed: others own it or can write it", extra={"path": str(path), "fix": fix})
    return False


def read_own(path: Path) -> str | None:
    """Return the text of a file that the user owns and alone can write; None for any other file."""
    return path.read_text() if is_own(path) else None
