"""The ready file, which a program creates to tell its parent process that it takes work now."""

from __future__ import annotations

import os

READY_FILE = "CODITECT_READY_FILE"
"""The environment variable with the path of the ready file."""


def tell_ready(*more: str, address: str = "") -> None:
    """Write `address` to the file that `CODITECT_READY_FILE` names, and to that of each variable in `more` that is set.

    A variable that is not set has no file; without an address the files are empty.
    """
    for variable in (READY_FILE, *more):
        if path := os.environ.get(variable):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(address)
