"""The process of an agent: its loops, its probes, and whether it is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, Context
from coditect.agent import health, heartbeat, program
from coditect.agent.health import health_server
from coditect.agent.process import BEGAN, Processes, RestartPolicy
from coditect.agent.program import unready
from coditect.aio.supervisor import LoopDied, RestartLimits, Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.errors import install_command
from coditect.model.ids import AgentId
from coditect.model.registration import Load
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.telemetry.metrics import MemoryMetrics, Metric
from coditect.testing import TestFleet
from coditect.testing.process import VirtualProcess
from tests.loops import loops, strike_once
from tests.support import eventually

BEATS, CLOCK = "heartbeat of worker-1", "clock"


def worker(executed: Counter[str]) -> Agent:
    agent = Agent("worker", slots=2)

    @agent.capability("work")
    async def work(_: None, ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.5)

    return agent


def why_not(process: VirtualProcess) -> str:
    return unready(process.broker, process.health)


async def test_every_loop_of_an_agent_is_critical_or_optional() -> None:
    async with TestFleet([worker(Counter())]) as fleet:
        (process,) = fleet.agents

        assert loops(process.health, critical=True) == {BEATS}
        assert loops(process.health, critical=False) == {CLOCK}
        assert why_not(process) == ""


@pytest.mark.parametrize("name", [BEATS, CLOCK])
async def test_loop_that_dies_is_healed_and_its_agent_stays_alive(name: str, caplog: pytest.LogCaptureFixture) -> None:
    executed: Counter[str] = Counter()
    async with TestFleet([worker(executed)]) as fleet:
        (process,) = fleet.agents
        handles = [await fleet.submit("work") for _ in range(20)]
        await fleet.advance(1)

        await strike_once(process.health, name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        down = why_not(process)
        await fleet.advance(2)

        assert (repr(name) in down) is (name == BEATS)
        assert why_not(process) == ""
        assert process.health.deaths == {name: 1}
        for handle in handles:
            await handle.result()
        assert Counter(executed.values()) == {1: 20}
        assert not [event for event in fleet.events if event.type == "agent.offline"]
        fleet.forgive_crashes()
    (said,) = [record for record in caplog.records if record.message == "A loop died; it is started again"]
    assert (vars(said)["loop"], vars(said)["critical"]) == (name, name == BEATS)


class Broken(MemoryRegistry):
    """Renews no lease, as no registry should fail."""

    async def renew(self, agent_id: AgentId, load: Load, *, lease_seconds: float) -> bool:
        raise RuntimeError("the fault that was asked for")


async def test_program_ends_with_the_loop_that_died_for_ever_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MemoryServer()

    @asynccontextmanager
    async def registry(url: str) -> AsyncIterator[MemoryRegistry]:
        yield Broken()

    def broker(url: str, *, name: str, **options: Any) -> MemoryBroker:
        return MemoryBroker(server, name=name)

    monkeypatch.setattr(program, "AmqpBroker", broker)
    monkeypatch.setattr(program, "RedisRegistry", registry)
    monkeypatch.setattr(program, "collect_rarely", lambda: None)
    monkeypatch.setattr(heartbeat, "Supervisor", partial(Supervisor, limits=RestartLimits(first_pause_seconds=0.001)))

    with pytest.raises(LoopDied) as ended:
        await program.serve(worker(Counter()), Settings(beat_seconds=0.01))

    assert ended.value.exit_code == 1
    assert str(ended.value.facts["loop"]).startswith("heartbeat of worker-")
    assert "the fault that was asked for" in str(ended.value.facts["reason"])


async def ask(port: int, request: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


async def test_liveness_and_readiness_are_told_apart() -> None:
    wrong = ""
    async with health_server(lambda: wrong, host="127.0.0.1", port=0) as port:
        assert "200 OK" in await ask(port, get("/readyz"))
        wrong = "no broker"

        assert (await ask(port, get("/readyz"))).startswith("HTTP/1.1 503")
        assert "no broker" in await ask(port, get("/readyz"))
        assert "200 OK" in await ask(port, get("/livez"))
        assert "404" in await ask(port, get("/other"))


async def test_readiness_tells_how_many_loops_were_started_again() -> None:
    async with health_server(lambda: "", host="127.0.0.1", port=0, restarts=lambda: 3) as port:
        assert (await ask(port, get("/readyz"))).endswith("ready; loops that died and were started again: 3\n")


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_say_meanwhile_that_the_event_loop_stands_still(path: str) -> None:
    answers: list[str] = []

    def probe(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(get(path))
            answers.append(connection.makefile().read())

    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        prober = threading.Thread(target=probe, args=(port,))
        prober.start()
        until = time.monotonic() + 30
        while prober.is_alive() and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop stands still for as long as the probe takes
        assert "200 OK" in await ask(port, get(path))

    assert answers[0].startswith("HTTP/1.1 503")
    assert "stands still" in answers[0]


@pytest.mark.parametrize("request_bytes", [b"nonsense", b"x" * 100_000])
async def test_probe_that_speaks_no_http_gets_no_answer(request_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "READ_SECONDS", 0.1)
    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        with contextlib.suppress(ConnectionError):  # it may be closed while it still sends
            assert await ask(port, request_bytes) == ""
        assert "200 OK" in await ask(port, get("/livez"))


async def test_metrics_are_read_on_the_event_loop_and_served() -> None:
    metrics, threads = MemoryMetrics(), set[threading.Thread]()

    def read() -> float:
        threads.add(threading.current_thread())
        return 5.0

    metrics.observe(Metric("coditect_things", "things"), read)
    async with health_server(lambda: "", host="127.0.0.1", port=0, metrics=metrics) as port:
        answer = await ask(port, get("/metrics"))

    assert answer.startswith("HTTP/1.1 200 OK")
    assert "coditect_things 5.0\n" in answer
    assert threads == {threading.current_thread()}


async def test_metrics_without_their_library_are_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        answer = await ask(port, get("/metrics"))

    assert answer.startswith("HTTP/1.1 501")
    assert install_command("metrics") in answer


SLOW_START = "import sys, time; open(sys.argv[1], 'a').write('x'); time.sleep(0.3); sys.exit(3)"
ENDS_WELL = "import os, sys; open(sys.argv[1], 'a').write('x'); os._exit(0)"
DRAINS = f"from coditect.agent.process import say_drained; say_drained(); {ENDS_WELL}"
WORKS_AND_DIES = f"import os, pathlib; pathlib.Path(os.environ['{BEGAN}']).touch(); {SLOW_START}"


QUICK = RestartPolicy(first_seconds=0.001, healthy_seconds=0.2, start_attempts=4)


def lives(path: Path) -> int:
    return len(path.read_text()) if path.exists() else 0


async def test_process_that_starts_slowly_and_never_works_is_given_up(tmp_path: Path) -> None:
    told = tmp_path / "lives"

    code = await Processes([sys.executable, "-c", SLOW_START, str(told)], 1, policy=QUICK).run()

    assert (code, lives(told)) == (3, QUICK.start_attempts)


async def test_process_that_worked_before_it_died_is_started_again(tmp_path: Path) -> None:
    told = tmp_path / "lives"
    kept = Processes([sys.executable, "-c", WORKS_AND_DIES, str(told)], 1, policy=QUICK)

    running = asyncio.create_task(kept.run())
    await eventually(lambda: lives(told) > QUICK.start_attempts, seconds=100)
    kept.stop()

    await running


@pytest.mark.parametrize(("child", "expected"), [(ENDS_WELL, (1, QUICK.start_attempts)), (DRAINS, (0, 1))])
async def test_only_a_drained_process_that_ends_stays_away(
    tmp_path: Path, child: str, expected: tuple[int, int]
) -> None:
    told = tmp_path / "lives"

    code = await Processes([sys.executable, "-c", child, str(told)], 1, policy=QUICK).run()

    assert (code, lives(told)) == expected
