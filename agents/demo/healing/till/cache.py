"""The cache of the till: receipts as JSON, which it can do without."""

from __future__ import annotations

import json
from pathlib import Path


def check_cache(folder: Path) -> None:
    """Read the receipts of a cache.

    Raises:
        ValueError: a receipt is damaged; the error names its file.
    """
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
