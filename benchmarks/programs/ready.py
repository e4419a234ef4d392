"""How a measured program says that it takes work."""

from __future__ import annotations

import os
from pathlib import Path

from coditect.local.plan import READY_FILE


def tell_ready() -> None:
    """Creates the file for whoever started us."""
    Path(os.environ[READY_FILE]).touch()
