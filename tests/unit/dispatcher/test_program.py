"""The program: the store that it opens, how it stands and ends, and what it loads."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from chaos.simulated_store import SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect.agent.health import Readiness
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import RestartLimits, Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.errors import InvalidTask, SetupError
from coditect.messaging.control_plane import asking
from coditect.model.ids import AgentId
from coditect.operations import status as standing_module
from coditect.operations.status import RefusalCounts, cluster_status
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.metrics import COMMITS_REFUSED, LOOP_RESTARTS, MemoryMetrics
from coditect.wire.control import Verb
from dispatcher import program
from dispatcher.ledger.ownership import leases, shards
from dispatcher.liveness import monitor
from dispatcher.program import Dispatcher, open_store
from dispatcher.shards import verbs
from dispatcher.store.errors import StoreFailed
from dispatcher.store.fdb import FdbDatabase
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import Transaction
from tests.fdb_stub import FdbStub
from tests.loops import WATCH, LoopingBroker
from tests.servers import ROOT, STARTUP
from tests.support import eventually
from tests.unit.dispatcher.planes import Plane, plane

Value = TypeVar("Value")


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Iterator[FdbStub]:
    """Stands in for FoundationDB's; at the end the threads of the tests take turns as they did before."""
    stub, usual = FdbStub(), sys.getswitchinterval()
    monkeypatch.setattr(program, "FdbDatabase", partial(FdbDatabase, binding=stub))
    yield stub
    sys.setswitchinterval(usual)


@pytest.mark.parametrize(
    ("url", "opened"), [("fdb:/etc/fdb.cluster", "/etc/fdb.cluster"), ("fdb:", None)], ids=["named", "the system's"]
)
async def test_fdb_opens_the_cluster_and_leaves_tls_alone(binding: FdbStub, url: str, opened: str | None) -> None:
    async with open_store(Settings(store_url=url)) as database:
        await database.run(lambda tr: tr.set(b"a", b"1"))
    assert (binding.opened, binding.options.chosen) == ([opened], [])
    assert sys.getswitchinterval() == pytest.approx(program.TURN_SECONDS) == 0.0005


def test_fdbs_verification_cannot_be_turned_off(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="always verified"):
        read_settings({"FDB_TLS_VERIFY_PEERS": "Check.Valid = 0"}, folder=tmp_path)


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


class Failing(SimulatedDatabase):
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
def test_failed_store_ends_us(takes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
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
def test_critical_loop_that_dies_for_ever_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def registry(url: str) -> AsyncIterator[MemoryRegistry]:
        yield Broken()

    quick = RestartLimits(first_pause_seconds=0.001)
    monkeypatch.setattr(program, "RedisRegistry", registry)
    monkeypatch.setattr(monitor, "Supervisor", partial(Supervisor, limits=quick))
    monkeypatch.setattr(program, "open_store", lambda settings, on_wait: SimulatedDatabase())

    code = program.main(Settings(shards=1))

    (said,) = [record for record in caplog.records if record.message == "The dispatcher cannot run"]
    assert code == 1
    assert "watch agents" in vars(said)["reason"]
    assert "the fault that was asked for" in vars(said)["reason"]


@pytest.mark.usefixtures("adapters")
def test_broker_s_dying_loop_ends_the_program(
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
    monkeypatch.setattr(program, "open_store", lambda settings, on_wait: SimulatedDatabase())

    code = program.main(Settings(shards=1))

    (said,) = [record for record in caplog.records if record.message == "The dispatcher cannot run"]
    assert (code, WATCH in vars(said)["reason"]) == (1, True)
    assert [count() for count in counts] == [broker.health.deaths[WATCH]] * 2


SHARDS = 4


@asynccontextmanager
async def two_dispatchers() -> AsyncIterator[tuple[Plane, list[Dispatcher], MemoryBroker]]:
    """Two dispatchers on one store, each with half of the shards, and somebody's connection."""
    async with plane() as made:
        both = [await made.dispatcher(shards=SHARDS, owner=name) for name in ("first", "second")]
        await eventually(lambda: [len(one.ownership.workers) for one in both] == [SHARDS // 2] * 2)
        yield made, both, await made.broker("person")


async def test_each_dispatcher_says_what_it_counted_and_one_without_shards_is_only_named() -> None:
    async with two_dispatchers() as (made, both, broker):
        for number, dispatcher in enumerate(both):
            dispatcher.metrics.counter(COMMITS_REFUSED).value = 1 + number
        await made.database.run(lambda tr: leases.renew(tr, "idle", 1))

        stands = await cluster_status(broker)

    first, idle, second = stands.dispatchers
    assert (first.owner, first.counts) == ("first", RefusalCounts(0, 1, 0, 0, 0, 0, 0, 0))
    assert (second.owner, second.counts) == ("second", RefusalCounts(0, 2, 0, 0, 0, 0, 0, 0))
    assert (idle.owner, idle.shards, idle.counts) == ("idle", (), None)
    assert sorted(first.shards + second.shards) == list(range(SHARDS))
    assert {one.shard: one.owner for one in stands.shards} == {
        **dict.fromkeys(first.shards, "first"),
        **dict.fromkeys(second.shards, "second"),
    }


async def test_dispatcher_that_does_not_answer_is_shown_with_its_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing_module, "OWN_SECONDS", 0.1)
    async with two_dispatchers() as (made, _, broker):
        await made.database.run(lambda tr: leases.renew(tr, "ghost", 1))

        async def takes_one() -> bool:
            """As soon as another one has given a shard away, since it shares with the ghost."""
            taken = await made.database.run(
                lambda tr: [leases.acquire(tr, shards.lease_name(shard), "ghost") for shard in range(SHARDS)]
            )
            return any(taken)

        await eventually(takes_one)
        stands = await cluster_status(broker)
        async with asking(broker, SystemClock(), name="another") as control:
            with pytest.raises(InvalidTask):
                await control.ask(Verb.STATUS, {"shard": SHARDS})
    ghost = stands.dispatchers[1]
    assert (ghost.owner, ghost.counts) == ("ghost", None)
    assert ghost.shards
    assert all(one.counts is not None for one in stands.dispatchers if one.shards and one is not ghost)


NOT_FOR_ALL = {
    "pydantic": "only a submission needs it, and a submission's transaction runs beside the event loop",
    "psutil": "an agent's",
    "rich": "the command line's",
    "typer": "the command line's",
    "fdb": "only a dispatcher on FoundationDB needs it",
    "yaml": "a workflow file's",
    "chaos": "it breaks fleets on purpose, and is not in the wheel",
    "coditect.client": "a user's",
    "coditect.codec": "a client's and an agent's",
    "cronsim": "only a schedule needs it",
    "zoneinfo": "only a schedule needs it",
    **dict.fromkeys(verbs.COORDINATION.values(), "only a fleet that uses it needs it"),
}

READ_THE_ENVIRONMENT = {
    "coditect/aio/launch.py": "where to say that the program is ready",
    "coditect/settings/settings.py": "the settings, which are documented",
}
READ_IT_TOO = {
    "dispatcher.program": {},
    "coditect.agent.program": {
        "coditect/aio/launch.py": "the name by which `coditect up` finds the program again",
        "coditect/agent/program.py": "the process that started it, with which it ends",
        "coditect/agent/process.py": "what the processes that it starts are given",
    },
}
ALONE = "import sys; sys.modules['opentelemetry'] = None; import {}"
"""redis-py loads OpenTelemetry wherever that is installed, and OpenTelemetry loads psutil."""


def names(file: Path) -> set[str]:
    """All names and attributes in a module that may read the environment."""
    text = file.read_text(encoding="utf-8")
    nodes = [*ast.walk(ast.parse(text))] if re.search("environ|getenv", text) else []
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return imported | attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


def test_start_of_a_dispatcher_loads_nothing_that_only_some_work_needs() -> None:
    script = f"{ALONE.format('dispatcher.program')}; print(*sorted(set({sorted(NOT_FOR_ALL)}) & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stderr, {name: NOT_FOR_ALL[name] for name in done.stdout.split()}) == ("", {})


@pytest.mark.parametrize("program", READ_IT_TOO)
def test_no_other_module_that_a_program_loads_reads_the_environment(program: str) -> None:
    files = "(getattr(one, '__file__', None) or '' for one in sys.modules.values())"
    script = f"{ALONE.format(program)}; print(*{files}, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in done.stdout.splitlines() if line.endswith(".py")}

    package = ROOT.joinpath(*program.removesuffix(".program").split("."))
    product = {
        path for path in loaded | {*package.rglob("*.py")} if path.is_relative_to(ROOT) and path.parent != STARTUP
    }
    own = {path for path in product if ".venv" not in path.parts}
    reading = {str(path.relative_to(ROOT)) for path in own if names(path) & {"environ", "environb", "getenv"}}

    assert len(own) > 50
    assert reading == {*READ_THE_ENVIRONMENT, *READ_IT_TOO[program]}
