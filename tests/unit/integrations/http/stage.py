"""The stage of the bridge's tests: HTTP agents on real sockets, and a bridge over the broker and registry in memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.agent.services import Host
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker
from coditect.client.handle import Handle
from coditect.integrations.http.addresses import AllowedHosts
from coditect.integrations.http.bridge import ALIVE, HttpAgents, HttpBridge
from coditect.integrations.http.calls import AgentCalls, agent_calls
from coditect.integrations.http.messages import AgentResponseEvent, Callbacks
from coditect.integrations.http.registration import HttpRegistration
from coditect.model.ids import AgentId
from coditect.model.registration import Registration
from coditect.registry.memory import MemoryRegistry
from tests.support import eventually
from tests.unit.agent.scene import SETTINGS, Scene

HOSTS = AllowedHosts(("127.0.0.1", "localhost"), private=True)
CALLBACKS = "http://127.0.0.1:9/agent-response"
MOST_BYTES = 100_000
LEASE_SECONDS = 2.0


@dataclass(slots=True)
class Given:
    """What the HTTP agent under test answers a request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drips: bool = False
    """Whether more bytes follow one by one, as long as the caller listens."""


def success(event: dict[str, Any], result: Any = "done") -> Given:
    return Given(body=answer_of(event, result=result))


def later(event: dict[str, Any]) -> Given:
    return Given(202)


def answer_of(event: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"request_id": event["event_id"], "status": "success", **fields}).encode()


def answered(event: dict[str, Any], **fields: Any) -> AgentResponseEvent:
    return AgentResponseEvent.model_validate_json(answer_of(event, **fields))


def token_of(event: dict[str, Any]) -> str:
    return str(event["callback_url"]).rpartition("/")[2]


class StubAgent(ThreadingHTTPServer):
    """An HTTP agent whose answers a test chooses."""

    daemon_threads = True
    answer: Callable[[dict[str, Any]], Given] = staticmethod(success)

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.events: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def kill(self) -> None:
        """Its socket and all connections end, as when the process is killed."""
        self.shutdown()
        self.server_close()
        for connection in self.open:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    server: StubAgent

    def do_POST(self) -> None:
        assert self.path == "/agent-request"
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.headers.append({name.lower(): text for name, text in self.headers.items()})
        self.server.events.append(event)
        self.server.open.append(self.connection)
        given = self.server.answer(event)
        self.send_response(given.status)
        for name, value in ({"content-length": str(len(given.body))} | given.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(given.body)
        with suppress(OSError):
            while given.drips:
                time.sleep(0.02)
                self.wfile.write(b" ")

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def stub_agent(answer: Callable[[dict[str, Any]], Given] = success, *, port: int = 0) -> Iterator[StubAgent]:
    server = StubAgent(port)
    server.answer = answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.kill()
        thread.join()


@dataclass(slots=True)
class Stage:
    """A bridge at work in a scene."""

    scene: Scene
    registrations: MemoryRegistry
    callbacks: Callbacks
    calls: AgentCalls
    bridge: HttpBridge
    looks: asyncio.Task[None]

    @property
    def agents(self) -> HttpAgents:
        """What the bridge's API may be asked."""
        return HttpAgents(
            self.registrations, self.scene.registry, self.bridge, self.callbacks, HOSTS, lease_seconds=LEASE_SECONDS
        )

    async def end(self) -> None:
        """End the bridge in good order."""
        self.looks.cancel()
        await self.bridge.close()

    async def register(self, url: str, *capabilities: Any, **fields: Any) -> AgentId:
        """Register an HTTP agent, and wait until it takes tasks."""
        agent_id = await self.enter(url, *capabilities, **fields)
        await self.served(agent_id)
        return agent_id

    async def enter(
        self, url: str, *capabilities: Any, name: str = "remote", lease_seconds: float = 60.0, **more: Any
    ) -> AgentId:
        """Register an HTTP agent."""
        given = HttpRegistration(name=name, base_url=url, capabilities=list(capabilities), **more)
        found = given.checked(HOSTS, now_ms=1)
        await self.registrations.register(found, ALIVE, lease_seconds=lease_seconds)
        self.bridge.hurry()
        return found.agent_id

    async def task(self, url: str, **options: Any) -> tuple[AgentId, Handle]:
        """Register an HTTP agent, and submit a task to it."""
        agent_id = await self.register(url, "words.count")
        return agent_id, await (await self.scene.client()).submit("words.count", **options)

    async def served(self, agent_id: AgentId) -> None:
        await eventually(lambda: self.scene.registry.get(agent_id))

    async def stopped(self, agent_id: AgentId) -> None:
        async def unknown() -> bool:
            return await self.scene.registry.get(agent_id) is None

        await eventually(unknown)


@asynccontextmanager
async def open_bridge(scene: Scene, registrations: MemoryRegistry, *, name: str = "bridge-1") -> AsyncIterator[Stage]:
    async def serve(agent: Agent, registration: Registration, stop: asyncio.Event) -> None:
        async with (
            MemoryBroker(scene.server, name=registration.agent_id) as broker,
            running_agent(
                agent,
                broker=broker,
                registry=scene.registry,
                settings=replace(SETTINGS, beat_seconds=0.2),
                clock=SystemClock(),
                drain=stop,
                agent_id=registration.agent_id,
                host=Host(workers=None, metadata=registration.metadata),
            ),
        ):
            await stop.wait()

    async with AsyncExitStack() as stack:
        calls = await stack.enter_async_context(agent_calls(HOSTS, most_bytes=MOST_BYTES))
        background = await stack.enter_async_context(Supervisor())
        callbacks = Callbacks()
        bridge = HttpBridge(
            registrations, serve, calls, callbacks, background,
            name=AgentId(name), callback_url=CALLBACKS, lease_seconds=LEASE_SECONDS,
        )  # fmt: skip
        looks = background.keep(bridge.run, name="HTTP agents", critical=False)
        opened = Stage(scene, registrations, callbacks, calls, bridge, looks)
        stack.push_async_callback(opened.end)
        yield opened
