"""Agents that speak only HTTP, on a real fleet: registered by curl, killed, and done without."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from coditect import Client, Status, Workflow
from coditect.local import PrivateServers
from coditect.local.servers import free_ports
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.programs import Program
from tests.servers import ROOT
from tests.support import eventually

pytestmark = pytest.mark.servers

WORDS = ROOT / "examples" / "http_agent.py"
TEXT = {"text": "to be or not to be"}
LATER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Later(BaseHTTPRequestHandler):
    def do_POST(self):
        event = self.rfile.read(int(self.headers["Content-Length"]))
        print(event.decode(), flush=True)
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Later).serve_forever()
"""
"""An HTTP agent that promises each answer for later, and prints what it was asked."""


@dataclass(frozen=True)
class Api:
    """The API of the test, as a process."""

    fleet: Fleet
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, *, drain_seconds: int = 1) -> Program:
        more = {"CODITECT_HTTP_HOSTS": "127.0.0.1", "CODITECT_PRIVATE_ADDRESSES": "http"}
        more["CODITECT_DRAIN_SECONDS"] = str(drain_seconds)
        more["CODITECT_HTTP_LEASE_SECONDS"] = "120"  # the agents send no heartbeats, and a busy machine is slow
        return await self.fleet.run("coditect", "api", "--port", str(self.port), **more)

    async def curl(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """What the API answers to curl."""
        data = [] if body is None else ["-H", "content-type: application/json", "-d", json.dumps(body)]
        verb = [] if method is None else ["-X", method]
        command = ["curl", "-sS", "--max-time", "10", *verb, *data, self.url + path]
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        return json.loads(ran.stdout or b"null")

    async def is_idle(self, agent_id: str) -> bool:
        """Whether an agent says by its heartbeat that it has nothing to do, which it says soon after its last task."""
        beat = await self.curl(f"/agents/{agent_id}/heartbeat", method="POST")
        return bool(beat["status"] == "idle")

    async def register(self, url: str) -> str:
        """The id of an HTTP agent that counts words, when it takes tasks."""
        given = {"name": "words", "base_url": url, "capabilities": ["words.count"], "metadata": {"made": "by curl"}}
        agent_id = str((await self.curl("/register", given))["agent_id"])

        async def well() -> bool:
            return (await self.curl(f"/health/{agent_id}")).get("healthy") is True

        await eventually(well)
        return agent_id


@contextmanager
def http_agent(script: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An HTTP agent as a process of its own, and its URL."""
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, str(script), str(port)], stdout=subprocess.PIPE) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


async def asked(agent: subprocess.Popen[bytes]) -> Any:
    """The next event that an HTTP agent was asked."""
    assert agent.stdout is not None
    async with asyncio.timeout(60):
        return json.loads(await asyncio.to_thread(agent.stdout.readline))


@asynccontextmanager
async def open_api(servers: PrivateServers, folder: Path) -> AsyncIterator[tuple[Api, Client]]:
    async with open_fleet(servers, folder) as fleet, client_of(servers) as client:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{folder / 'ledger.db'}")
        yield Api(fleet, free_ports(1)[0]), client


def counting() -> Workflow:
    flow = Workflow("words")
    flow.task("words.count", TEXT, name="count")
    return flow


@pytest.mark.timeout(180)
async def test_an_http_agent_registered_by_curl_does_a_node_and_killed_amid_one_leaves_it_to_another(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    (later := tmp_path / "later.py").write_text(LATER)
    async with open_api(own_servers, tmp_path) as (api, client):
        await api.start()
        with http_agent(later) as (dying, dying_url), http_agent(WORDS) as (_, words_url):
            dying_id = await api.register(dying_url)
            run = await client.start(counting())
            event = await asked(dying)

            words_id = await api.register(words_url)
            os.kill(dying.pid, signal.SIGKILL)
            value = await run.result(timeout="60s")

            listed = {one["agent_id"]: one["metadata"] for one in await api.curl("/agents")}
            found = await api.curl("/capabilities/search?q=count")
            await eventually(lambda: api.is_idle(words_id))
            unwell = await api.curl(f"/health/{dying_id}")
            metrics = await asyncio.to_thread(lambda: urlopen(f"{api.url}/metrics", timeout=10).read().decode())

    assert event["action"] == "words.count"
    assert event["source_agent"] == f"workflow:{run.id}"
    assert value == {"words": 6}
    assert listed[words_id] == {"made": "by curl", "base_url": words_url}
    assert [one["name"] for one in found] == ["words.count"]
    assert unwell["healthy"] is False
    assert 'coditect_agent_requests_total{capability="words.count"} 2.0' in metrics
    assert 'coditect_task_attempts_total{outcome="completed"} 1.0' in metrics
    assert "coditect_agent_slots" not in metrics, "it would show one of many agents"


@pytest.mark.timeout(180)
async def test_a_later_answer_is_posted_to_the_api_and_a_killed_api_has_its_tasks_done_again(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    (later := tmp_path / "later.py").write_text(LATER)
    async with open_api(own_servers, tmp_path) as (api, client):
        first = await api.start()
        with http_agent(later) as (agent, url):
            agent_id = await api.register(url)
            run = await client.start(counting())
            handle = await client.submit("words.count", TEXT)
            before = await asked(agent)

            first.kill()
            await api.start()  # what was registered is still there
            again: list[Any] = []

            async def answer_all() -> None:
                while True:  # it takes one request at a time, and is asked once more if its bridge was thought lost
                    again.append(event := await asked(agent))
                    answer = {"request_id": event["event_id"], "status": "success", "result": {"words": 6}}
                    await api.curl(event["callback_url"].removeprefix(api.url), answer)

            answering = asyncio.create_task(answer_all())
            values = [await run.result(timeout="60s"), await handle.result(timeout="60s")]
            answering.cancel()
            late = {"request_id": before["event_id"], "status": "success", "result": {"words": 6}}
            stale = await api.curl(before["callback_url"].removeprefix(api.url), late)
            served = [one["agent_id"] for one in await api.curl("/agents")]

    assert values == [{"words": 6}, {"words": 6}]
    assert stale["status"] == 404
    assert served == [agent_id]
    assert before["correlation_id"] in {event["correlation_id"] for event in again}


@pytest.mark.timeout(180)
async def test_an_api_that_is_stopped_takes_the_later_answers_to_what_its_agents_have(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    (later := tmp_path / "later.py").write_text(LATER)
    async with open_api(own_servers, tmp_path) as (api, client):
        process = await api.start(drain_seconds=60)
        with http_agent(later) as (agent, url):
            agent_id = await api.register(url)
            handle = await client.submit("words.count", TEXT)
            event = await asked(agent)

            process.send_signal(signal.SIGTERM)

            async def draining() -> bool:
                return bool((await api.curl(f"/agents/{agent_id}"))["status"] == "draining")

            await eventually(draining)
            answer = {"request_id": event["event_id"], "status": "success", "result": {"words": 6}}
            assert await api.curl(event["callback_url"].removeprefix(api.url), answer) is None
            outcome = await handle.outcome(timeout="30s")
            code = await asyncio.to_thread(process.wait, 60)

    assert (outcome.status, outcome.attempt, code) == (Status.COMPLETED, 1, 0)


@pytest.mark.timeout(180)
async def test_a_later_answer_counts_at_an_api_process_that_did_not_post_the_request(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    (later := tmp_path / "later.py").write_text(LATER)
    async with open_api(own_servers, tmp_path) as (api, client):
        await api.start()
        other = Api(api.fleet, free_ports(1)[0])
        with http_agent(later) as (agent, url):
            await api.register(url)
            await other.start()
            run = await client.start(counting())
            event = await asked(agent)
            path = event["callback_url"].removeprefix(api.url)
            answer = {"request_id": event["event_id"], "status": "success", "result": {"words": 6}}

            wrong = await other.curl(path, answer | {"request_id": "another"})
            taken = await other.curl(path, answer)
            value = await run.result(timeout="60s")
            late = await other.curl(path, answer)

    assert (wrong["status"], taken, late["status"]) == (422, None, 404)
    assert value == {"words": 6}
