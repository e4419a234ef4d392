"""A real FoundationDB in place of the in-memory store: the tests of workflows run on it unchanged.

With ``CODITECT_TEST_STORE=fdb`` every in-memory store that a test opens is a database on the cluster that
``FDB_CLUSTER_FILE`` names, in a subspace of its `Disk`'s own, which is cleared when the test ends. In virtual time its
transactions run in the event loop's own thread, so that time stands still until the cluster has answered. What a
cluster cannot do is skipped, and said: what only the twin has (faults on request, its disk, a crash). ``fdb-stub`` does
the same on the stub of the binding, without a cluster.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from itertools import product
from types import TracebackType
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

import pytest

from chaos.simulated_store import NO_FAULTS, Disk, Faults, SimulatedDatabase
from dispatcher.store.fdb import API_VERSION, FdbDatabase, FdbSettings, load_binding
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.memory import MemoryDatabase
from tests.fdb_stub import FdbStub

Result = TypeVar("Result")

STORE_VARIABLE = "CODITECT_TEST_STORE"
CLUSTER_FILE = os.environ.get("FDB_CLUSTER_FILE")


class _Reads:
    def __init__(self, reads: Any, prefix: bytes) -> None:
        self._inner = reads
        self._prefix = prefix
        self.get_read_version = reads.get_read_version

    def get(self, key: bytes) -> Any:
        return self._inner.get(self._prefix + key)

    def get_range(self, begin: bytes, end: bytes, *how: Any) -> Iterator[Any]:
        found = self._inner.get_range(self._prefix + begin, self._prefix + end, *how)
        return (_Pair(pair, len(self._prefix)) for pair in found)


class _Pair:
    def __init__(self, pair: Any, cut: int) -> None:
        self.key = pair.key[cut:]
        self.value = pair.value


class _Transaction(_Reads):
    def __init__(self, transaction: Any, prefix: bytes) -> None:
        super().__init__(transaction, prefix)
        self.snapshot = _Reads(transaction.snapshot, prefix)
        self.options, self.commit, self.on_error = transaction.options, transaction.commit, transaction.on_error
        self.set_read_version, self.get_committed_version = (
            transaction.set_read_version,
            transaction.get_committed_version,
        )

    def set(self, key: bytes, value: bytes) -> None:
        self._inner.set(self._prefix + key, value)

    def add(self, key: bytes, amount: bytes) -> None:
        self._inner.add(self._prefix + key, amount)

    def clear(self, key: bytes) -> None:
        self._inner.clear(self._prefix + key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        self._inner.clear_range(self._prefix + begin, self._prefix + end)

    def add_read_conflict_key(self, key: bytes) -> None:
        self._inner.add_read_conflict_key(self._prefix + key)

    def add_write_conflict_key(self, key: bytes) -> None:
        self._inner.add_write_conflict_key(self._prefix + key)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        self._inner.add_read_conflict_range(self._prefix + begin, self._prefix + end)


class _Database:
    def __init__(self, database: Any, prefix: bytes) -> None:
        self._inner = database
        self._prefix = prefix

    def create_transaction(self) -> _Transaction:
        return _Transaction(self._inner.create_transaction(), self._prefix)


class Subspace:
    """FoundationDB's binding with every key below a prefix; give it to `FdbDatabase(binding=…)`."""

    def __init__(self, binding: Any, prefix: bytes) -> None:
        self._binding = binding
        self._prefix = prefix

    def open(self, cluster_file: str | None) -> _Database:
        return _Database(self._binding.open(cluster_file), self._prefix)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


class ClusterDatabase(FdbDatabase):
    """A database on the cluster with the constructor of `SimulatedDatabase`; all on one `Disk` have the same keys."""

    binding: Any = None
    """The binding that every database of the run has."""
    prefixes: dict[int, tuple[Disk, bytes]] = {}  # noqa: RUF012  # of the test that runs
    """The prefix of each disk of the test that runs, with the disk, which keeps its identity."""

    def __init__(
        self,
        disk: Disk | None = None,
        *,
        faults: Faults = NO_FAULTS,
        seed: int = 0,
        run_seconds: float = RUN_SECONDS,
        sleep: Callable[[float], object] | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        if now is not None or any((faults.conflict, faults.unknown_committed, faults.unknown_lost, faults.too_old)):
            _only_the_twin("faults on request, or a clock of the test's own")
        disk = Disk() if disk is None else disk
        prefix = self.prefixes.setdefault(id(disk), (disk, b"test-%s/" % uuid4().hex.encode()))[1]
        super().__init__(
            FdbSettings(cluster_file=CLUSTER_FILE, run_seconds=run_seconds), binding=Subspace(self.binding, prefix)
        )

    @property
    def repeated(self) -> int:
        """Number of transactions that were started again."""
        return self.repeats.total()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _in_virtual_time():
            self._pool = None  # it has no thread that could be waited for
        await super().__aexit__(kind, error, trace)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        if not _in_virtual_time():
            return await super()._in_thread(work)
        await asyncio.sleep(0)
        return work()

    def __getattr__(self, name: str) -> Any:
        if name in ("_sleep", "crash", "disk", "fail", "faults", "path"):
            _only_the_twin(name)
        raise AttributeError(name)


def _in_virtual_time() -> bool:
    return "time" in vars(asyncio.get_running_loop())


def _only_the_twin(what: str) -> NoReturn:
    pytest.skip(f"only the in-memory store has this: {what}")


def put_in_place(name: str) -> None:
    """Make each in-memory store a database on the cluster, in the modules that are loaded and in those that will be."""
    ClusterDatabase.binding = FdbStub() if name == "fdb-stub" else load_binding()
    twins = {twin.__name__: twin for twin in (MemoryDatabase, SimulatedDatabase)}
    for module, (kind, twin) in product([*sys.modules.values()], twins.items()):
        if module.__name__ != "tests.rerun" and vars(module).get(kind) is twin:
            vars(module)[kind] = ClusterDatabase
    Disk.__deepcopy__ = lambda *_: _only_the_twin("a copy of its disk")  # type: ignore[attr-defined]


def clear_subspaces() -> None:
    """Remove every key that the test that has ended wrote."""
    prefixes = [prefix for _, prefix in ClusterDatabase.prefixes.values()]
    ClusterDatabase.prefixes.clear()
    if not prefixes:
        return
    ClusterDatabase.binding.api_version(API_VERSION)
    transaction = ClusterDatabase.binding.open(CLUSTER_FILE).create_transaction()
    for prefix in prefixes:
        transaction.clear_range(prefix, prefix + b"\xff")
    transaction.commit().wait()
