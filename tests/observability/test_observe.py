"""A fleet under load before a real Prometheus: every dashboard query returns data, every alert fires and clears.

`make observe` runs it and shows the check list. CODITECT_OBSERVE_SECONDS is how long the load lasts, and
CODITECT_OBSERVE_KEEP=1 keeps everything running at the end, until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from httpx2 import AsyncClient

from coditect import Agent, Client, Workflow
from coditect.agent.health import health_server
from coditect.agent.program import running_agent
from coditect.agent.services import Host
from coditect.aio.clock import SystemClock
from coditect.broker.rabbitmq import AmqpBroker
from coditect.errors import CoditectError
from coditect.local import PrivateServers
from coditect.local.servers import free_ports
from coditect.registry.redis import RedisRegistry
from coditect.settings.settings import Settings
from coditect.telemetry.metrics import CERTIFICATE_END, MemoryMetrics
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.integration.telemetry.test_collector import COLLECTOR, Collector, collector, label
from tests.observability.dashboards import ALERTS, queries
from tests.observability.prometheus import Prometheus, running_prometheus, short_rules
from tests.programs import Program
from tests.servers import ROOT
from tests.support import eventually
from tests.unit.api.test_webhook_attempts import endpoint

pytestmark = [pytest.mark.servers, pytest.mark.endurance, pytest.mark.timeout(3600)]

AGENT = Path(__file__).with_name("observed_agent.py")
SECONDS = float(os.environ.get("CODITECT_OBSERVE_SECONDS", "20"))
PATIENCE_SECONDS = 90.0
LOAD_AT_ONCE = 8
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
MOST_GROWTH = 1.2
"""By how much the resident memory of a process may grow from a fifth of the load's time to its end."""


@dataclass
class Watched:
    """A fleet whose processes Prometheus scrapes, and what came of each check."""

    fleet: Fleet
    folder: Path
    client: Client
    prometheus: Prometheus
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Program] = field(default_factory=dict)
    tracing: dict[str, str] = field(default_factory=dict)
    """The variables by which the processes send their spans to the collector, if there is one."""
    checks: list[tuple[bool, str]] = field(default_factory=list)

    async def start(self, name: str, *command: str) -> None:
        """A process under a name, scraped at the same port each time that it is started."""
        port = self.ports.setdefault(name, free_ports(1)[0])
        more = {"OBSERVED_FOLDER": str(self.folder), "OBSERVED_NAME": name, "PYTHONPATH": str(ROOT)}
        more |= {"CODITECT_HEALTH_PORT": str(port), **self.tracing}
        self.processes[name] = await self.fleet.run(*command, **more)
        self.prometheus.scrape(self.ports)

    async def start_dispatcher(self) -> None:
        await self.start(
            "dispatcher", "coditect", "dispatcher", "run", "--store", f"sqlite:{self.folder / 'ledger.db'}"
        )

    async def start_api(self) -> None:
        port = self.ports.setdefault("api", free_ports(1)[0])  # it serves its metrics beside its routes
        more = {"CODITECT_API_WEBHOOK_KEY": "k" * 32, "CODITECT_PRIVATE_ADDRESSES": "webhooks", **self.tracing}
        self.processes["api"] = await self.fleet.run("coditect", "api", "--port", str(port), **more)
        self.prometheus.scrape(self.ports)

    async def start_agent(self, name: str) -> None:
        await self.start(name, "coditect", "agent", "run", str(AGENT))

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def check(self, done: bool, what: str) -> None:
        self.checks.append((done, what))
        print(f"  [{'x' if done else ' '}] {what}", flush=True)

    async def soon(self, what: str, condition: Callable[[], object]) -> None:
        """Check that something becomes true."""
        try:
            await eventually(condition, seconds=PATIENCE_SECONDS)
        except AssertionError:
            self.check(False, what)
        else:
            self.check(True, what)

    async def fires(self, *alerts: str) -> None:
        for alert in alerts:
            await self.soon(f"{alert} fired", partial(self._fires, alert, True))

    async def clears(self, *alerts: str) -> None:
        for alert in alerts:
            await self.soon(f"{alert} cleared", partial(self._fires, alert, False))

    async def _fires(self, alert: str, wanted: bool) -> bool:
        return (alert in await self.prometheus.firing()) is wanted


async def test_every_query_returns_data_and_every_alert_fires_and_clears(
    own_servers: PrivateServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, "")  # of the traced client; put back at the end
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        prometheus = await enter(running_prometheus(tmp_path / "prometheus", short_rules()))
        fleet = await enter(open_fleet(own_servers, tmp_path))
        watched = Watched(fleet, tmp_path, await enter(client_of(own_servers)), prometheus)
        print(f"\n  Prometheus: {prometheus.url}/graph, alerts: {prometheus.url}/alerts")
        _say_what_is_missing()
        collected = stack.enter_context(collector(tmp_path)) if COLLECTOR else None
        if collected is not None:
            watched.tracing = _traced_by(collected)
            print(f"  Collector: OTLP at {watched.tracing[ENDPOINT]}, spans in {collected.file}")
        await watched.start_dispatcher()
        await watched.start_api()
        await watched.start_agent("worker")
        await watched.start_agent("lone")
        await _under_load(watched, own_servers)
        if collected is not None:
            await _traced(watched, collected)
        await _break(watched)
        if os.environ.get("CODITECT_OBSERVE_KEEP"):
            print("  Everything runs on; Ctrl-C ends it", flush=True)
            await asyncio.Event().wait()

    fired = {what.removesuffix(" fired") for done, what in watched.checks if done and what.endswith(" fired")}
    assert [what for done, what in watched.checks if not done] == []
    assert fired == {alert["alert"] for alert in ALERTS}


def _say_what_is_missing() -> None:
    for program in ("grafana", "jaeger"):
        if shutil.which(program) is None:
            print(f"  {program} is not here: deploy/compose.yaml has it in the profile observability")
    if not COLLECTOR:
        print("  A collector is not here, so no trace is looked at: `make collector-test` says why")


def _traced_by(collected: Collector) -> dict[str, str]:
    """The variables of a process that sends its spans to the collector."""
    endpoint = f"http://127.0.0.1:{collected.http}"
    return {"CODITECT_TRACING": "otlp", "OTEL_BSP_SCHEDULE_DELAY": "200", ENDPOINT: endpoint}


async def _traced(watched: Watched, collected: Collector) -> None:
    """Run one workflow with a client that traces, and look for every hop in its trace."""
    os.environ[ENDPOINT] = watched.tracing[ENDPOINT]  # the exporter of this process reads it there
    flow = Workflow("seen")
    flow.task("load.work", 2, name="second", after=[flow.task("load.work", 1, name="first")])
    async with Client.from_env(watched.fleet.environment(**watched.tracing)) as client:
        await (await client.start(flow)).result(timeout="60s")
    wanted = {"client publish seen", "dispatcher process seen"} | {
        f"{hop} {node}"
        for hop in ("dispatcher publish", "agent process", "dispatcher process")
        for node in ("first", "second")
    }

    def in_one_trace() -> bool:
        traces: dict[str, set[str]] = {}
        for span in collected.spans():
            traces.setdefault(span["traceId"], set()).add(label(span))
        return [wanted <= hops for hops in traces.values() if "client publish seen" in hops] == [True]

    await watched.soon("one trace of a workflow has every hop, from the client to its last result", in_one_trace)


async def _under_load(watched: Watched, servers: PrivateServers) -> None:
    """Have the fleet work; meanwhile ask every query, with one agent whose clock and certificate are at fault."""
    async with asyncio.TaskGroup() as tasks, _webhook(watched), _faulty_agent(watched, servers):
        ticked = Workflow("tick")
        ticked.task("load.work", 1)
        await watched.client.schedules.create("ticks", ticked, every="1s")
        load = [tasks.create_task(_work(watched.client, number)) for number in range(LOAD_AT_ONCE)]
        load.append(tasks.create_task(_workflows(watched.client)))
        await watched.soon("Prometheus scrapes every process", partial(_all_up, watched))
        await watched.fires("CoditectClockSkew", "CoditectCertificateEnds")
        for one in queries():
            await watched.soon(f"{one.panel}: {one.expression}", partial(watched.prometheus.query, one.expression))
        await _memory(watched)
        for task in load:
            task.cancel()
    await watched.clears("CoditectClockSkew", "CoditectCertificateEnds")


@asynccontextmanager
async def _webhook(watched: Watched) -> AsyncIterator[None]:
    """A webhook to which the API posts the end of every workflow."""
    url = f"http://127.0.0.1:{watched.ports['api']}/v1/webhooks/watching"
    async with endpoint() as receiving, AsyncClient() as http:
        order = {"url": receiving.url, "kind": ["workflow.completed"]}
        added = await http.put(url, json=order, timeout=60)
        assert added.status_code == 201, added.text
        yield
        await http.delete(url, timeout=60)


async def _all_up(watched: Watched) -> bool:
    return await watched.prometheus.up() == set(watched.ports)


async def _memory(watched: Watched) -> None:
    """Let the load go on for its time, and compare the memory of each process with that after a fifth of it."""
    names, began = ("dispatcher", "worker"), time.monotonic()
    await asyncio.sleep(SECONDS / 5)
    before = {name: await _resident(watched, name) for name in names}
    await asyncio.sleep(max(0.0, began + SECONDS - time.monotonic()))
    for name in names:
        after = await _resident(watched, name)
        told = f"{before[name] / 1e6:.1f} MB, {after / 1e6:.1f} MB after {SECONDS:.0f} s of load"
        watched.check(after < MOST_GROWTH * before[name], f"memory of {name} is flat: {told}")


async def _resident(watched: Watched, name: str) -> float:
    return (await watched.prometheus.query(f'process_resident_memory_bytes{{process="{name}"}}'))[0]


async def _work(client: Client, number: int) -> None:
    while True:
        await (await client.submit("load.work", 20 + number % 3)).result(timeout="60s")


async def _workflows(client: Client) -> None:
    while True:
        flow = Workflow("load")
        flow.task("load.work", 30, name="second", after=[flow.task("load.work", 10, name="first")])
        await (await client.start(flow)).result(timeout="60s")


class _Ahead(SystemClock):
    """A clock that is three seconds ahead."""

    def now_ms(self) -> int:
        return super().now_ms() + 3_000


@asynccontextmanager
async def _faulty_agent(watched: Watched, servers: PrivateServers) -> AsyncIterator[None]:
    """An agent of this process, whose clock is ahead and whose broker's certificate ends tomorrow."""
    metrics = MemoryMetrics()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(AmqpBroker(servers.amqp_url, name="ahead"))
        registry = await enter(RedisRegistry(servers.redis_url))
        await enter(
            running_agent(
                Agent("ahead"),
                broker=broker,
                registry=registry,
                settings=Settings(amqp_url=servers.amqp_url, redis_url=servers.redis_url),
                clock=_Ahead(),
                drain=asyncio.Event(),
                host=Host(metrics=metrics, workers=None),
            )
        )
        metrics.observe_all(CERTIFICATE_END, lambda: {("broker",): time.time() + 86_400})
        watched.ports["ahead"] = await enter(health_server(lambda: "", host="127.0.0.1", port=0, metrics=metrics))
        watched.prometheus.scrape(watched.ports)
        yield
    del watched.ports["ahead"]
    watched.prometheus.scrape(watched.ports)


async def _break(watched: Watched) -> None:
    """Cause each fault, see its alert, mend it, and see the alert clear."""
    client = watched.client
    (watched.folder / "down").touch()
    waiting = await client.submit("stub.call", 1)  # it waits for the breaker, and no attempt counts
    await watched.fires("CoditectBreakerOpen")
    (watched.folder / "down").unlink()
    await waiting.result(timeout="60s")
    await watched.clears("CoditectBreakerOpen")

    async with client.lock("repo"):
        waiting = await client.submit("lock.take", "repo")
        await watched.fires("CoditectLockWaits")
    await waiting.result(timeout="60s")
    await watched.clears("CoditectLockWaits")

    with pytest.raises(CoditectError):
        await (await client.submit("fail.now", 1)).result(timeout="60s")
    await watched.fires("CoditectDeadLettersGrow")
    await watched.clears("CoditectDeadLettersGrow")

    watched.kill("lone")
    left = await client.submit("lone.work", 1)
    await watched.fires("CoditectAgentsGone", "CoditectQueueWithoutConsumer", "CoditectOldTasks")
    await watched.start_agent("lone")
    await left.result(timeout="60s")
    await watched.clears("CoditectAgentsGone", "CoditectQueueWithoutConsumer", "CoditectOldTasks")

    watched.kill("dispatcher")
    await watched.fires("CoditectShardsWithoutOwner")
    await watched.start_dispatcher()
    await watched.clears("CoditectShardsWithoutOwner")
