"""A measured program's sign that it takes work."""

from __future__ import annotations

import os
from pathlib import Path

from coditect.local.plan import READY_FILE


def tell_ready() -> None:
    """Create the ready file for the process that started this program."""
    Path(os.environ[READY_FILE]).touch()
