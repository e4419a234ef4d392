"""The program of the HTTP API: opens its connections, and serves the application until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from errno import EADDRINUSE
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp

from coditect.agent.program import AGENT_CONNECT_SECONDS
from coditect.aio.launch import tell_ready
from coditect.aio.loop import collect_rarely, on_stop_signal, run_loop
from coditect.aio.supervisor import Supervisor
from coditect.api.access import Access, AdminKey, KeyFile, OpenAccess
from coditect.api.application import create_app
from coditect.api.bearer import BearerAccess, OidcTokens, TokenCheck
from coditect.api.connections import SharedConnections
from coditect.api.guard import AUDIT_LOGGER, BoundedHttp, RefusableWebSocket, RequestRates
from coditect.api.live import LiveFeed
from coditect.api.routes.http_agents import CALLBACK_PATH
from coditect.api.services import ApiServices, DirectTasks
from coditect.api.webhooks import open_webhooks
from coditect.blobs import open_blobs
from coditect.broker.management import Management
from coditect.client.client import Client
from coditect.client.program import adapters
from coditect.client.webhooks import check_key
from coditect.errors import CoditectError, SetupError
from coditect.integrations.http.bridge import HttpAgents
from coditect.integrations.http.program import open_bridge
from coditect.operations.connections import Connections
from coditect.operations.scorecard import SharedScorecard
from coditect.settings.addresses import vhost_of
from coditect.settings.settings import HTTP_DEFAULTS, ApiSettings, HttpAgentSettings, Settings
from coditect.telemetry.logs import configure_logs
from coditect.telemetry.metrics import MemoryMetrics
from coditect.telemetry.process import open_tracing

if TYPE_CHECKING:
    from coditect.integrations.a2a.serving import A2aEndpoints

log = logging.getLogger(__name__)

STREAMS_END_WITHIN_SECONDS = 2
"""How long open streams may hold up the end of the program: uvicorn itself would wait until their readers leave."""

MOST_WEBSOCKET_BYTES = 4_096
"""The most that a reader of events may send at once: it has nothing to say."""
STUCK_MS = 60_000
"""After how many milliseconds without an acknowledged byte a connection ends, where the system can tell."""


@dataclass(frozen=True, slots=True)
class ApiProgram:
    """The HTTP API as a program, with its settings."""

    settings: Settings
    api: ApiSettings
    http_agents: HttpAgentSettings = HTTP_DEFAULTS
    any_port: bool = False
    """Whether another free port is taken when the port is not free."""

    def run(self, listening: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT; `listening` is called with the address when requests are answered.

        Raises:
            SetupError: when the address cannot be listened at, or others could reach it without a key.
            BrokerUnavailable: when the broker does not answer.
            LoopDied: when a loop that the process needs has died again and again.
        """
        configure_logs(self.settings)
        logging.getLogger(AUDIT_LOGGER).setLevel(logging.INFO)
        try:
            run_loop(self._serve(listening))
        except asyncio.CancelledError:
            log.info("Stopped before the API was ready")

    async def _serve(self, listening: Callable[[str], None]) -> None:
        if (opening := asyncio.current_task()) is not None:
            on_stop_signal(opening.cancel)  # until the server has handlers of its own
        check_exposure(self.api)
        access_of(self.api)  # what is wrong with keys is told before the servers are waited for
        if self.api.webhook_key is not None:
            check_key(self.api.webhook_key)
        with listener(self.api.host, self.api.port, or_any=self.any_port) as own:

            def announce() -> None:
                tell_ready(address=_address(own))
                listening(_address(own))

            callbacks, metrics = callback_address(self.http_agents, own), MemoryMetrics()
            async with (
                open_bridge(self.settings, self.http_agents, callback_url=callbacks, metrics=metrics) as bridge,
                open_services(self.settings, self.api, bridge, metrics) as services,
            ):
                server = AnnouncedServer(
                    server_config(services, self.api),
                    announce,
                    ending=services.feed.end,
                    drain=bridge.drain,
                )
                died = await serve_until(server, own, services.health.failure())
            if died is not None:  # raised only here, since the MCP server's task group would wrap it
                raise died


class AnnouncedServer(uvicorn.Server):
    """A uvicorn server that says when it answers requests, and when it begins to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        announce: Callable[[], None],
        *,
        ending: Callable[[str], None],
        drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Call `announce` once the server listens; at its stop, await `drain`, then call `ending` with a reason."""
        super().__init__(config)
        self._announce = announce
        self._ending = ending
        self._drain = drain

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT; uvicorn's own way raises the signal again, before the connections are closed."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer requests, and call `announce` if the server has started."""
        await super().startup(sockets)
        if self.started:
            collect_rarely()
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: let HTTP agents answer their running tasks, then end event streams, for which uvicorn would wait."""
        if self._drain is not None:
            await self._drain()
        self._ending("the server stops")
        await super().shutdown(sockets)


async def serve_until(
    server: AnnouncedServer, own: socket.socket, failure: Coroutine[Any, Any, CoditectError]
) -> CoditectError | None:
    """Serve until SIGTERM or SIGINT and return None, or until `failure` returns an error, and return that."""

    failed = False

    def stop(_: object) -> None:
        nonlocal failed
        failed = not server.should_exit  # while it drains, nothing more is lost by a loop
        server.should_exit = True

    failing = asyncio.ensure_future(failure)
    failing.add_done_callback(stop)
    try:
        await server.serve(sockets=[own])
        return failing.result() if failed else None
    finally:
        failing.cancel()


def server_config(services: ApiServices, settings: ApiSettings) -> uvicorn.Config:
    """Return uvicorn's configuration for the API's application, made with the given connections and services."""
    return uvicorn.Config(
        create_app(services, settings),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        http=BoundedHttp,
        ws=RefusableWebSocket,
        ws_max_size=MOST_WEBSOCKET_BYTES,
        timeout_graceful_shutdown=STREAMS_END_WITHIN_SECONDS,
    )


@asynccontextmanager
async def open_services(
    settings: Settings, api: ApiSettings, http_agents: HttpAgents, metrics: MemoryMetrics
) -> AsyncIterator[ApiServices]:
    """Open what the API's routes work with (broker, registry, client, live events, webhooks, MCP) while the block runs.

    Raises:
        BrokerUnavailable: when the broker does not answer.
    """
    broker, registry = adapters(settings, name="coditect api", connect_seconds=AGENT_CONNECT_SECONDS)
    blobs = open_blobs(settings.blob_url, most_bytes=settings.blob_max_bytes)
    name = f"api-{token_hex(6)}"
    tracing = open_tracing(settings, service="coditect-api", instance=name)
    client = Client(broker, registry, name=name, blobs=blobs, metrics=metrics, tracing=tracing)
    async with tracing, broker, registry, client, LiveFeed(broker, name=client.name) as feed:
        opened = SharedConnections(
            broker=lambda: adapters(settings, name="coditect api, one request")[0],
            registry=registry,
            http_agents=http_agents.registrations,
            client=client,
            environ=os.environ,
            management=Management(settings.management_url) if settings.management_url else None,
            vhost=vhost_of(settings.amqp_url),
        )
        async with (
            open_webhooks(
                opened, broker, key=api.webhook_key or "", private=api.webhook_private, metrics=metrics
            ) as webhooks,
            _open_mcp(opened, api) as mcp,
            Supervisor(broker.health) as background,
        ):
            yield ApiServices(
                opened=opened,
                broker=broker,
                access=access_of(api),
                rates=RequestRates(api.rate, time.monotonic),
                direct_tasks=DirectTasks(),
                feed=feed,
                webhooks=webhooks,
                scorecard=SharedScorecard(opened, background),
                health=broker.health,
                http_agents=http_agents,
                mcp=mcp,
                trace_url=api.trace_url,
                a2a=_fleet_a2a(opened, api),
                metrics=metrics,
            )


@asynccontextmanager
async def _open_mcp(opened: Connections, api: ApiSettings) -> AsyncIterator[ASGIApp | None]:
    """Open the fleet as an MCP server inside of the block; None where the extra `mcp` is not installed."""
    try:
        from coditect.integrations.mcp.serving import open_http  # noqa: PLC0415 - an optional dependency
    except ImportError:
        yield None
        return
    async with open_http(opened, most_bytes=api.body_bytes) as manager:
        yield manager.handle_request


def _fleet_a2a(opened: Connections, api: ApiSettings) -> Callable[[], A2aEndpoints] | None:
    """Return a function that loads the fleet as an A2A agent; None where the extra `a2a` is not installed."""
    if find_spec("a2a") is None:
        return None

    def load() -> A2aEndpoints:
        from coditect.integrations.a2a.serving import A2aEndpoints  # noqa: PLC0415 - it takes half a second

        return A2aEndpoints(opened, api)

    return load


def access_of(api: ApiSettings) -> Access:
    """Return the access that the settings ask for: by keys, by an issuer's tokens, by all of these, or open.

    Raises:
        SetupError: when the file of keys cannot be used, or the issuer is reached without TLS.
    """
    checks: list[TokenCheck] = [] if api.key is None else [AdminKey(api.key)]
    if api.keys is not None:
        keys = KeyFile(Path(api.keys))
        keys.keys()
        checks.append(keys)
    if api.oidc_issuer is not None:
        checks.append(OidcTokens(api.oidc_issuer, api.oidc_audience, api.oidc_roles))
    return BearerAccess(checks) if checks else OpenAccess()


def check_exposure(api: ApiSettings) -> None:
    """Refuse to listen where other machines reach the API, unless callers need a key or token.

    Raises:
        SetupError: for any address but a loopback one.
    """
    if api.secured or api.host == "localhost":
        return
    try:
        local = ip_address(api.host).is_loopback
    except ValueError:
        local = False
    if not local:
        fix = "CODITECT_API_HOST=127.0.0.1, or CODITECT_API_KEYS=FILE and `coditect api key create`"
        raise SetupError("Without API keys only this machine may reach the API", host=api.host, fix=fix)


def listener(host: str, port: int, *, or_any: bool = False) -> socket.socket:
    """Return a socket that listens at an address; at any port of the host if the port is taken and `or_any` allows it.

    Raises:
        SetupError: when it cannot, such as when another process does.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        own = socket.create_server((host, port), family=family)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # ends the connection of a reader that takes nothing more
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_MS)
        return own
    except OSError as error:
        if or_any and error.errno == EADDRINUSE:
            return listener(host, 0)
        fix = "end what listens there, or set CODITECT_API_PORT, or CODITECT_API_HOST"
        raise SetupError(
            "The API cannot listen at its address", host=host, port=port, reason=error.strerror, fix=fix
        ) from error


def callback_address(http_agents: HttpAgentSettings, own: socket.socket) -> str:
    """Return the URL below which HTTP agents post their later answers.

    Raises:
        SetupError: when HTTP agents are allowed, and the API listens at all addresses and does not know its own.
    """
    if http_agents.hosts and http_agents.callback_url is None and ip_address(own.getsockname()[0]).is_unspecified:
        fix = f"CODITECT_HTTP_CALLBACK_URL=http://this-host:{own.getsockname()[1]}"
        raise SetupError("HTTP agents must know where this API is to be reached", fix=fix)
    return (http_agents.callback_url or _address(own)).rstrip("/") + CALLBACK_PATH


def _address(own: socket.socket) -> str:
    host, port = own.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
