"""The private store of a real run: a SQLite file, or a FoundationDB cluster of three processes that faults can hit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from coditect.local.foundationdb import PrivateFoundationDB, private_foundationdb

PROCESSES = 3
"""The fewest processes of a cluster that goes on without one of them."""


class StoreKind(StrEnum):
    """The kind of a run's store."""

    SQLITE = "sqlite"
    FOUNDATIONDB = "fdb"


@dataclass(frozen=True, slots=True)
class ChaosStore:
    """The open private store of a run."""

    url: str
    """The value of `CODITECT_STORE_URL` that names the store."""
    cluster: PrivateFoundationDB | None = None
    """The cluster, for faults; None on SQLite, which has no process of its own."""


@asynccontextmanager
async def private_store(kind: StoreKind, folder: Path, *, environ: Mapping[str, str]) -> AsyncIterator[ChaosStore]:
    """Open a new store with its files below `folder` during the block.

    Raises:
        MissingServer, StartFailed, AlreadyUp: when FoundationDB cannot be started.
    """
    if kind is StoreKind.SQLITE:
        yield ChaosStore(f"sqlite:{folder / 'ledger.db'}")
        return
    async with private_foundationdb(folder / "foundationdb", environ=environ, processes=PROCESSES) as cluster:
        yield ChaosStore(f"fdb:{cluster.cluster_file}", cluster)
