"""A store in the middle of its work, as the build wrote it that knew no versions: every row of it is of version 1.

The file is never made again; a build that cannot read it cannot be upgraded to.
"""

from __future__ import annotations

import json
from pathlib import Path

from dispatcher.ledger.keyspace import ROOT
from dispatcher.store.transaction import Transaction

_FILE = Path(__file__).with_suffix(".json")


def rows() -> list[tuple[bytes, bytes]]:
    """Keys and values."""
    pairs = json.loads(_FILE.read_text(encoding="utf-8"))
    return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in pairs]


def rows_by_kind() -> dict[str, list[bytes]]:
    """The values by the name of their key, without those that say nothing."""
    found: dict[str, list[bytes]] = {}
    for key, value in rows():
        if value:
            found.setdefault(str(ROOT.unpack(key)[0]), []).append(value)
    return found


def put(tr: Transaction) -> None:
    """Write the whole store."""
    for key, value in rows():
        tr.set(key, value)
