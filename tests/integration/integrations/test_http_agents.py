"""HTTP agents do nodes of workflows on real servers, and leave them to others when they are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from coditect import Client, Workflow
from coditect.integrations.http.directory import HttpAgents
from coditect.integrations.http.program import open_bridge
from coditect.integrations.http.registration import HttpCapability, HttpRegistration
from coditect.local import PrivateServers
from coditect.local.servers.ports import free_ports
from coditect.model.ids import AgentId
from coditect.settings.http_agents import HttpAgentSettings
from coditect.settings.settings import Settings
from coditect.telemetry.metrics import MemoryMetrics
from tests.integration.agent.fleet import client_of, open_fleet
from tests.servers import ROOT
from tests.support import eventually

pytestmark = pytest.mark.servers

WORDS = ROOT / "examples" / "http_agent.py"
SLOW = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Slow(BaseHTTPRequestHandler):
    def do_POST(self):
        print("asked", flush=True)
        time.sleep(600)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Slow).serve_forever()
"""


@contextmanager
def http_agent(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An HTTP agent as a process of its own, and its URL."""
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, *arguments, str(port)], stdout=subprocess.PIPE) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@asynccontextmanager
async def bridge_of(
    servers: PrivateServers, *, lease_seconds: float = 60.0, metrics: MemoryMetrics | None = None
) -> AsyncIterator[HttpAgents]:
    settings = Settings(amqp_url=servers.amqp_url, redis_url=servers.redis_url, drain_seconds=2.0)
    own = HttpAgentSettings(hosts="127.0.0.1", private=True, lease_seconds=lease_seconds)
    url = "http://127.0.0.1:9/agent-response"
    async with open_bridge(settings, own, callback_url=url, metrics=metrics or MemoryMetrics()) as agents:
        yield agents


@asynccontextmanager
async def open_bridge_beside_a_dispatcher(
    servers: PrivateServers, folder: Path
) -> AsyncIterator[tuple[Client, HttpAgents]]:
    async with open_fleet(servers, folder) as fleet, client_of(servers) as client, bridge_of(servers) as agents:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{folder / 'ledger.db'}")
        yield client, agents


def counting() -> Workflow:
    flow = Workflow("words")
    flow.task("words.count", {"text": "to be or not to be"}, name="count")
    return flow


async def registered(agents: HttpAgents, url: str, *capabilities: str) -> AgentId:
    """The id of an HTTP agent that takes tasks."""
    given = [HttpCapability(name=one, timeout_seconds=600) for one in capabilities]
    answer = await agents.register(HttpRegistration(name="words", base_url=url, capabilities=[*given], slots=2))

    async def served() -> bool:
        return (await agents.get(AgentId(answer.agent_id))).load.status.value == "idle"

    await eventually(served)
    return AgentId(answer.agent_id)


async def test_an_http_agent_does_a_node_and_killed_amid_one_leaves_it_to_another(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    async with open_bridge_beside_a_dispatcher(own_servers, tmp_path) as (client, agents):
        with http_agent(str(slow)) as (dying, dying_url), http_agent(str(WORDS)) as (_, words_url):
            dying_id = await registered(agents, dying_url, "words.count")
            run = await client.start(counting())
            assert dying.stdout is not None
            asked = await asyncio.to_thread(dying.stdout.readline)

            await registered(agents, words_url, "words.count")
            os.kill(dying.pid, signal.SIGKILL)

            assert asked == b"asked\n"
            assert await run.result(timeout="60s") == {"words": 6}

            async def gone() -> bool:
                return (await agents.health(dying_id)).healthy is False

            await eventually(gone)


async def test_a_node_that_meets_a_closed_port_is_done_elsewhere_and_no_attempt_counts(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_bridge_beside_a_dispatcher(own_servers, tmp_path) as (client, agents):
        with http_agent(str(WORDS)) as (dead, dead_url):
            dead_id = await registered(agents, dead_url, "words.count")
            dead.kill()
            dead.wait()
            run = await client.start(counting())

            async def gone() -> bool:
                return "no connection" in (await agents.health(dead_id)).reason

            await eventually(gone)
            with http_agent(str(WORDS)) as (_, url):
                await registered(agents, url, "words.count")

                assert await run.result(timeout="60s") == {"words": 6}
                rows = [row async for row in run.nodes()]

    assert [row.attempt for row in rows] == [1]
