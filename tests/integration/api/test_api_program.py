"""`coditect api` as a program, on real servers: it serves, and ends while requests are open."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from httpx2 import AsyncClient, HTTPError

from coditect import Agent
from coditect.api.access import KeyFile, Role
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology, capability_queues
from coditect.model.capability import Priority
from coditect.wire import routing
from tests.fleet import remove_queues, running
from tests.servers import Servers
from tests.support import eventually, patient

pytestmark = pytest.mark.servers


@dataclass(frozen=True, slots=True)
class Served:
    """A running `coditect api`, with a client of it."""

    process: asyncio.subprocess.Process
    http: AsyncClient


@asynccontextmanager
async def served(servers: Servers, folder: Path, **more: str) -> AsyncIterator[Served]:
    """Runs the API at a free port during the block."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}
    urls = {"CODITECT_AMQP_URL": servers.amqp_url, "CODITECT_REDIS_URL": servers.redis_url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coditect", "api", "--port", "0"),
        env=kept | urls | {"CODITECT_LOG_LEVEL": "WARNING"} | more,
        cwd=folder,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        while b"listens at" not in (line := await process.stderr.readline()):
            assert line, "the API ended"
        address = line.decode().split("listens at ")[1].split()[0].rstrip(".")
        async with AsyncClient(base_url=address, timeout=60.0) as http:
            yield Served(process, http)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_task_is_submitted_and_its_result_asked_for(servers: Servers, capability: str, tmp_path: Path) -> None:
    agent = Agent("echoer", version="1.0.0")

    @agent.capability(capability)
    async def echo(text: str) -> str:
        """Gives its input back."""
        return text

    async with running(agent, servers), served(servers, tmp_path) as api:
        order = {"capability": capability, "input": "hello"}
        at_once = await api.http.post("/v1/tasks", json=order, params={"wait": "30s"})
        submitted = await api.http.post("/v1/tasks", json=order)
        later = await api.http.get(submitted.headers["location"], params={"wait": "30s"})
        queues = await api.http.get("/v1/queues", params={"capability": capability})
        letters = await api.http.get("/v1/dead", params={"capability": capability})
        api.process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(api.process.wait(), patient(10.0))

    assert (at_once.status_code, at_once.json()["value"]) == (200, "hello")
    assert later.json()["value"] == "hello"
    assert [one["consumers"] > 0 for one in queues.json()[0]["levels"]] == [True, True, True]
    assert letters.json()["letters"] == []
    assert code == 0


async def test_sigterm_ends_it_while_a_request_waits(servers: Servers, capability: str, tmp_path: Path) -> None:
    queue = routing.task_queue(capability, Priority.P1)
    async with AmqpBroker(servers.amqp_url, name="test") as broker, AsyncExitStack() as stack:
        await broker.declare(base_topology() + capability_queues(capability))
        stack.push_async_callback(remove_queues, broker, [capability])
        api = await stack.enter_async_context(served(servers, tmp_path))
        order = {"capability": capability, "input": 1}
        waiting = asyncio.create_task(api.http.post("/v1/tasks", json=order, params={"wait": "5m"}))

        async def taken() -> bool:
            assert not waiting.done(), waiting.result().text
            stats = await broker.stats(queue)
            return stats is not None and stats.messages == 1

        await eventually(taken)
        api.process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(api.process.wait(), patient(10.0))
        with pytest.raises(HTTPError):
            (await waiting).raise_for_status()

    assert code == 0


async def test_with_keys_a_caller_is_known_and_each_change_is_one_line_of_json(
    servers: Servers, tmp_path: Path
) -> None:
    key = KeyFile(tmp_path / "keys").create("ada", Role.OPERATOR, made_at="2026-01-01T00:00:00+00:00")
    async with served(servers, tmp_path, CODITECT_API_KEYS=str(tmp_path / "keys")) as api:
        stranger = await api.http.get("/v1/agents")
        headers = {"authorization": f"Bearer {key}"}
        agents = await api.http.get("/v1/agents", headers=headers)
        await api.http.post("/v1/tasks", json={"capability": "no.such.thing"}, headers=headers)
        api.process.send_signal(signal.SIGTERM)
        assert api.process.stderr is not None
        lines = (await api.process.stderr.read()).decode().splitlines()

    (line,) = (json.loads(one) for one in lines if "coditect.api.audit" in one)
    assert (stranger.status_code, agents.status_code) == (401, 200)
    assert (line["caller"], line["role"], line["action"], line["status"]) == ("ada", "operator", "submit_task", 422)
    assert key not in "".join(lines)


async def test_a_task_whose_reader_goes_away_is_canceled(servers: Servers, capability: str, tmp_path: Path) -> None:
    agent, ended = Agent("teller", version="1.0.0"), asyncio.Event()

    @agent.capability(capability)
    async def tell(first: int) -> AsyncIterator[int]:
        """Yields without end."""
        try:
            for number in count(first):
                yield number
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with running(agent, servers), served(servers, tmp_path) as api:
        async with api.http.stream("POST", "/v1/tasks/stream", json={"capability": capability, "input": 0}) as answer:
            lines = answer.aiter_lines()
            while "data: 3" not in await anext(lines):
                pass
        await asyncio.wait_for(ended.wait(), patient(20.0))
