"""The check that paths in requests stay inside the fleet's folder."""

from __future__ import annotations

import os
from pathlib import Path

from coditect.errors import InputError

ROOT = "CODITECT_FLEET_ROOT"
"""The environment variable with the fleet's folder; by default the agent's working folder."""


def fleet_root() -> Path:
    """Return the fleet's folder, with links resolved."""
    return Path(os.environ.get(ROOT) or ".").resolve()


def confined(path: str) -> str:
    """Return a path unchanged if it leads, with links resolved, into the fleet's folder; else raise an error.

    Raises:
        InputError: not retryable; the path leads elsewhere.
    """
    if not Path(path).resolve().is_relative_to(fleet_root()):
        fix = f"give a path in it, or start the agent with {ROOT}=FOLDER"
        raise InputError("the path leads out of the fleet's folder", path=path, fix=fix)
    return path
