"""The program: which store the settings open, and how it ends when that store fails for good."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from coditect.agent.health import Readiness
from coditect.aio.supervisor import RestartLimits, Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.errors import SetupError
from coditect.model.ids import AgentId
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.metrics import MemoryMetrics
from coditect.telemetry.names import LOOP_RESTARTS
from dispatcher import program
from dispatcher.liveness import monitor
from dispatcher.program import open_store
from dispatcher.store.errors import StoreFailed
from dispatcher.store.fdb import FdbDatabase
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import Transaction
from dispatcher.taskgraph.memory import MemoryTaskGraph
from tests.fdb_stub import FdbStub
from tests.loops import WATCH, LoopingBroker

Value = TypeVar("Value")


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Iterator[FdbStub]:
    """Stands in for FoundationDB's; at the end the threads of the tests take turns as they did before."""
    stub, usual = FdbStub(), sys.getswitchinterval()
    monkeypatch.setattr(program, "FdbDatabase", partial(FdbDatabase, binding=stub))
    yield stub
    sys.setswitchinterval(usual)


async def test_fdb_opens_the_named_cluster_over_tls_as_the_environment_says(binding: FdbStub, tmp_path: Path) -> None:
    environment = {
        "CODITECT_STORE_URL": "fdb:/etc/fdb.cluster",
        "CODITECT_FDB_TLS_CERT_FILE": "cert.pem",
        "CODITECT_FDB_TLS_KEY_FILE": "key.pem",
        "CODITECT_FDB_TLS_KEY_PASSWORD": "secret",
        "CODITECT_FDB_TLS_CA_FILE": "ca.pem",
        "CODITECT_FDB_TLS_VERIFY_PEERS": "Check.Valid=1",
    }
    settings = read_settings(environment, folder=tmp_path)

    async with open_store(settings) as database:
        await database.run(lambda tr: tr.set(b"a", b"1"))

    assert binding.opened == ["/etc/fdb.cluster"]
    assert dict(binding.options.chosen) == {
        "set_tls_cert_path": "cert.pem",
        "set_tls_key_path": "key.pem",
        "set_tls_password": "secret",
        "set_tls_ca_path": "ca.pem",
        "set_tls_verify_peers": b"Check.Valid=1",
    }
    assert "secret" not in repr(settings)


def test_fdbs_verification_cannot_be_turned_off(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="always verified"):
        read_settings({"CODITECT_FDB_TLS_VERIFY_PEERS": "Check.Valid = 0"}, folder=tmp_path)


async def test_fdb_alone_is_the_system_s_cluster_without_tls(binding: FdbStub) -> None:
    async with open_store(Settings(store_url="fdb:")):
        pass

    assert (binding.opened, binding.options.chosen) == ([None], [])
    assert sys.getswitchinterval() == pytest.approx(program.TURN_SECONDS) == 0.0005


async def test_sqlite_opens_the_named_file(tmp_path: Path) -> None:
    path, usual = tmp_path / "here.db", sys.getswitchinterval()

    async with open_store(Settings(store_url=f"sqlite:{path}")) as database:
        assert isinstance(database, SqliteDatabase)

    assert path.is_file()
    assert sys.getswitchinterval() == usual


@pytest.mark.parametrize("name", ["", "sqlite", "sqlite:", "redis://localhost/0", "here.db"])
def test_store_that_there_is_not_is_refused_and_the_fix_named(name: str) -> None:
    with pytest.raises(SetupError) as refused:
        open_store(Settings(store_url=name))

    assert refused.value.facts["given"] == name
    assert "CODITECT_STORE_URL=sqlite:PATH" in str(refused.value.facts["fix"])


def test_store_is_read_by_its_former_name_while_the_new_one_is_not_set(tmp_path: Path) -> None:
    former = {"CODITECT_STORE": "sqlite:old.db"}
    both = {**former, "CODITECT_STORE_URL": "sqlite:new.db"}

    assert read_settings(former, folder=tmp_path).store_url == "sqlite:old.db"
    assert read_settings(both, folder=tmp_path).store_url == "sqlite:new.db"


class Failing(MemoryDatabase):
    """Takes everything until its disk is full; then it has failed for good."""

    def __init__(self, *, takes: int) -> None:
        super().__init__()
        self._takes = takes
        self._failed = asyncio.Event()

    async def run(self, body: Callable[[Transaction], Value]) -> Value:
        self._takes -= 1
        if self._takes < 0:
            self._failed.set()
            raise StoreFailed("The disk is full")
        return await super().run(body)

    async def failure(self) -> StoreFailed:
        await self._failed.wait()
        return StoreFailed("The disk is full")


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's adapters are the twins."""
    server = MemoryServer()

    @asynccontextmanager
    async def registry(url: str) -> AsyncIterator[MemoryRegistry]:
        yield MemoryRegistry()

    @asynccontextmanager
    async def graph(url: str, *, worker: str) -> AsyncIterator[MemoryTaskGraph]:
        yield MemoryTaskGraph()

    def broker(url: str, *, name: str, **options: Any) -> MemoryBroker:
        return MemoryBroker(server, name=name)

    monkeypatch.setattr(program, "AmqpBroker", broker)
    monkeypatch.setattr(program, "RedisRegistry", registry)
    monkeypatch.setattr(program, "RedisTaskGraph", graph)
    monkeypatch.setattr(program, "collect_rarely", lambda: None)
    monkeypatch.setattr(program, "configure_logs", lambda *_: None)


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("takes", [0, 30])
def test_store_that_fails_for_good_ends_the_program_which_says_why(
    takes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(program, "open_store", lambda settings, on_wait: Failing(takes=takes))

    code = program.main(Settings(shards=4))

    (said,) = [record for record in caplog.records if record.message == "The dispatcher cannot run"]
    assert code == 1
    assert "The disk is full" in vars(said)["reason"]


class Broken(MemoryRegistry):
    """Fails as no registry should."""

    async def leases(self) -> Mapping[AgentId, int]:
        raise RuntimeError("the fault that was asked for")


@pytest.mark.usefixtures("adapters")
def test_critical_loop_that_dies_for_ever_ends_the_program_which_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def registry(url: str) -> AsyncIterator[MemoryRegistry]:
        yield Broken()

    quick = RestartLimits(first_pause_seconds=0.001)
    monkeypatch.setattr(program, "RedisRegistry", registry)
    monkeypatch.setattr(monitor, "Supervisor", partial(Supervisor, limits=quick))
    monkeypatch.setattr(program, "open_store", lambda settings, on_wait: MemoryDatabase())

    code = program.main(Settings(shards=1))

    (said,) = [record for record in caplog.records if record.message == "The dispatcher cannot run"]
    assert code == 1
    assert "watch agents" in vars(said)["reason"]
    assert "the fault that was asked for" in vars(said)["reason"]


@pytest.mark.usefixtures("adapters")
def test_loop_of_the_broker_that_dies_for_ever_is_counted_and_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker = LoopingBroker(MemoryServer(), "ada", RestartLimits(first_pause_seconds=0.001))
    broker.dying.set()
    counts: list[Callable[[], object]] = []

    @asynccontextmanager
    async def seen(
        _: Settings, __: Readiness, metrics: MemoryMetrics, **told: Callable[[], int]
    ) -> AsyncIterator[None]:
        counts.append(lambda: metrics.samples()[LOOP_RESTARTS.name, ()])
        counts.extend(told.values())
        yield

    monkeypatch.setattr(program, "AmqpBroker", lambda url, **_: broker)
    monkeypatch.setattr(program, "seen_from_outside", seen)
    monkeypatch.setattr(program, "open_store", lambda settings, on_wait: MemoryDatabase())

    code = program.main(Settings(shards=1))

    (said,) = [record for record in caplog.records if record.message == "The dispatcher cannot run"]
    assert (code, WATCH in vars(said)["reason"]) == (1, True)
    assert [count() for count in counts] == [broker.health.deaths[WATCH]] * 2
