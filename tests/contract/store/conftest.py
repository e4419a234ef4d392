from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from chaos.simulated_store import Faults, SimulatedDatabase
from dispatcher.store.fdb import FdbDatabase, FdbSettings
from dispatcher.store.keys import Space
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.port import Database
from dispatcher.store.sqlite import SqliteDatabase
from tests.fdb_stub import FdbStub

CLUSTER_FILE = os.environ.get("FDB_CLUSTER_FILE")
"""FoundationDB itself is under test only when this is set: see `make test-fdb`."""
BACKENDS = ("memory", "simulated", "simulated-slow", "sqlite", "fdb-stub", *(("fdb",) if CLUSTER_FILE else ()))

Make = Callable[[Path], Database]
MAKERS: dict[str, Make] = {
    "memory": lambda folder: MemoryDatabase(),
    "simulated": lambda folder: SimulatedDatabase(),
    "simulated-slow": lambda folder: SimulatedDatabase(faults=Faults(read_seconds=(0.0005, 0.002))),
    "sqlite": lambda folder: SqliteDatabase(folder / "store.db"),
    "fdb-stub": lambda folder: FdbDatabase(binding=FdbStub()),
    "fdb": lambda folder: FdbDatabase(FdbSettings(cluster_file=CLUSTER_FILE)),
}


@pytest.fixture(params=BACKENDS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with MAKERS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def space() -> Space:
    """Keys of the test's own: nothing is ever flushed."""
    return Space((f"test-{uuid4().hex}",))
