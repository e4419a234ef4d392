"""The ready file, which a program creates to tell its parent process that it takes work now."""

from __future__ import annotations

import os
from pathlib import Path

READY_FILE = "CODITECT_READY_FILE"
"""The environment variable with the path of the ready file."""


def tell_ready(*more: str, address: str = "") -> None:
    """For `CODITECT_READY_FILE` and each environment variable in `more`, if it is set, create the file at its path.

    The files have the address at which the program listens, if it has one.
    """
    for variable in (READY_FILE, *more):
        if path := os.environ.get(variable):
            Path(path).write_text(address)
