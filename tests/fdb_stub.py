"""The surface of FoundationDB's Python binding 7.3 that our adapter uses, over an in-memory disk.

Errors appear where the binding raises them: reads and `commit().wait()` raise FDBError, `on_error(code).wait()`
resets the transaction when the code is one to retry and raises it otherwise. Transactions run in threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.simulated_store import Disk, Mutation, View
from dispatcher.store.errors import TransactionConflict, TransactionTooOld

RETRYABLE = frozenset({1007, 1009, 1020, 1021, 1037, 1038, 1039, 1042, 1051, 1078, 1213, 1223})
MOST_STATES = 32


class FDBError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"stub ({code})")
        self.code = code


def _raised(code: int) -> None:
    raise FDBError(code)


class Future:
    def __init__(self, result: Callable[[], Any]) -> None:
        self._result = result

    def wait(self) -> Any:
        return self._result()

    @property
    def value(self) -> Any:
        return self._result()


@dataclass
class KeyValue:
    key: bytes
    value: bytes


class StreamingMode:
    want_all = -2
    iterator = -1


class _Options:
    """Remembers every `set_…` in order."""

    def __init__(self) -> None:
        self.chosen: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        if not name.startswith("set_"):
            raise AttributeError(name)

        def choose(value: Any = None) -> None:
            self.chosen.append((name, value))

        return choose


class _TransactionRead:
    def __init__(self, transaction: Transaction, snapshot: bool) -> None:
        self._transaction = transaction
        self._snapshot = snapshot

    def get(self, key: bytes) -> Future:
        assert isinstance(key, bytes)
        try:
            value = self._transaction.view().get(key, self._snapshot)  # before any later write
        except FDBError as error:
            code = error.code
            return Future(lambda: _raised(code))
        return Future(lambda: value)

    def get_range(
        self, begin: bytes, end: bytes, limit: int = 0, reverse: bool = False, streaming_mode: int = 0
    ) -> list[KeyValue]:
        pairs = self._transaction.view().get_range(begin, end, limit, reverse, self._snapshot)
        return [KeyValue(key, value) for key, value in pairs]

    def get_read_version(self) -> Future:
        return Future(lambda: self._transaction.view().version)


class Transaction(_TransactionRead):
    def __init__(self, database: Database) -> None:
        super().__init__(self, False)
        self.snapshot = _TransactionRead(self, True)
        self.options = _Options()
        self._database = database
        self._view: View | None = None
        self._began = time.monotonic()
        self._read_version: int | None = None
        self._is_checked = False
        self._committed = -1

    def view(self) -> View:
        self._check_time()
        if self._view is None:
            stub = self._database.stub
            stub.fail_next("read")
            stub.versions_asked += self._read_version is None
            self._view = View(stub.states.get(self._read_version) or stub.copy())
        return self._view

    def set_read_version(self, version: int) -> None:
        self._read_version = version

    def get_committed_version(self) -> int:
        return self._committed

    def set(self, key: bytes, value: bytes) -> None:
        self.view().set(key, value)

    def clear(self, key: bytes) -> None:
        self.view().clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        self.view().clear_range(begin, end)

    def add(self, key: bytes, param: bytes) -> None:
        self.view().add(key, param)

    def add_read_conflict_key(self, key: bytes) -> None:
        self.add_read_conflict_range(key, key + b"\0")

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        self.view().reads.append((begin, end))

    def add_write_conflict_key(self, key: bytes) -> None:
        self._is_checked = True

    def commit(self) -> Future:
        return Future(self._commit)

    def on_error(self, code: int) -> Future:
        return Future(lambda: self._recover(code))

    def _commit(self) -> None:
        self._check_time()
        if self._view is None or not (self._view.mutations or self._is_checked):
            return
        stub = self._database.stub
        with stub.lock:
            stub.fail_next("commit")
            try:
                stub.disk.check(self._view.reads, self._view.version)
            except TransactionConflict:
                raise FDBError(1020) from None
            except TransactionTooOld:
                raise FDBError(1007) from None
            self._committed = stub.apply(self._view.mutations)
            stub.fail_next("committed")

    def _recover(self, code: int) -> None:
        self._check_time()
        self._database.stub.recovered.append(code)
        if code not in RETRYABLE:
            raise FDBError(code)
        self._view, self._read_version, self._is_checked = None, None, False

    def _check_time(self) -> None:
        for name, milliseconds in self.options.chosen:
            if name == "set_timeout" and time.monotonic() - self._began > milliseconds / 1000:
                raise FDBError(1031)


class Database:
    def __init__(self, stub: FdbStub) -> None:
        self.stub = stub

    def create_transaction(self) -> Transaction:
        self.stub.begun.append(Transaction(self))
        return self.stub.begun[-1]


@dataclass
class FdbStub:
    """Give it to `FdbDatabase(binding=…)` in place of the module."""

    disk: Disk = field(default_factory=Disk)
    has_library: bool = True
    """Whether the native library is there."""
    failures: deque[tuple[str, int]] = field(default_factory=deque)
    """What goes wrong next, in order: at a ``read``, at a ``commit`` (not done), when ``committed`` (done)."""
    recovered: list[int] = field(default_factory=list)
    """The codes that went through `on_error`."""
    opened: list[Any] = field(default_factory=list)
    begun: list[Transaction] = field(default_factory=list)
    """Every transaction, in order."""
    versions_asked: int = 0
    """The number of transactions that began at the present version, and not at one that was given."""
    lock: Any = field(default_factory=threading.RLock)
    states: dict[int | None, Disk] = field(default_factory=dict)
    """What was committed, as it was at each of the last versions."""
    batched: deque[list[Mutation]] = field(default_factory=deque)
    """What others commit in one batch with the next commit, behind it: all of a batch have one version."""
    version: int | None = None
    options: _Options = field(default_factory=_Options)
    StreamingMode = StreamingMode
    FDBError = FDBError

    def api_version(self, version: int) -> None:
        if not self.has_library:
            raise Exception("Unable to locate the FoundationDB API shared library!")  # as the binding
        if self.version not in (None, version):
            raise RuntimeError(f"FDB API already loaded at version {self.version}")
        self.version = version

    def open(self, cluster_file: str | None = None) -> Database:
        assert self.version is not None
        self.opened.append(cluster_file)
        return Database(self)

    def apply(self, mutations: list[Mutation]) -> int:
        """Commit, and what is batched with it, and return the version of all of it."""
        self.disk.apply(mutations)
        while self.batched:
            self.disk.apply(self.batched.popleft())
            _, writes = self.disk.commits.pop()
            self.disk.commits[-1][1].extend(writes)
            self.disk.version -= 1
        self.states[self.disk.version] = self.copy()
        self.states.pop(self.disk.version - MOST_STATES, None)
        return self.disk.version

    def copy(self) -> Disk:
        with self.lock:
            return Disk(list(self.disk.keys), dict(self.disk.values), self.disk.version)

    def fail_next(self, place: str) -> None:
        if self.failures and self.failures[0][0] == place:
            raise FDBError(self.failures.popleft()[1])
