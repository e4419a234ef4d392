"""The folder that requests may name paths in, whoever sends them."""

from __future__ import annotations

import os
from pathlib import Path

from coditect.errors import InputError

ROOT = "CODITECT_FLEET_ROOT"
"""The variable that names it; the agent's working folder when it is not set."""


def confined(path: str) -> str:
    """The path, when it leads into the fleet's folder, also through links.

    Raises:
        InputError: not retryable; it leads elsewhere.
    """
    root = Path(os.environ.get(ROOT) or ".").resolve()
    if not Path(path).resolve().is_relative_to(root):
        fix = f"give a path in it, or start the agent with {ROOT}=FOLDER"
        raise InputError("the path leads out of the fleet's folder", path=path, fix=fix)
    return path
