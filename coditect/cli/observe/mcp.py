"""`coditect mcp`: offer the fleet's capabilities as tools to MCP clients."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.errors import missing_extra
from coditect.settings.settings import Settings, read_settings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `serve` a command of its own."""


@app.command("serve")
def serve_mcp(
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", help="Only these, such as 'code.*'; can be repeated."),
    ] = None,
) -> None:
    """Serve one MCP client over stdin and stdout, until it closes them; `coditect api` serves MCP over HTTP at /mcp.

    \b
    Example: coditect mcp serve --capability 'code.*'
    """
    try:
        import mcp  # noqa: F401 - the SDK, an optional dependency
    except ImportError as error:
        raise missing_extra("mcp") from error
    say_guesses(AMQP, REDIS)
    run_loop(_serve(read_settings(), capability or ["*"]))


async def _serve(settings: Settings, patterns: list[str]) -> None:
    from coditect.api.connections import SharedConnections
    from coditect.blobs import open_blobs
    from coditect.client.client import Client
    from coditect.client.program import adapters
    from coditect.integrations.mcp.program import serve_stdio
    from coditect.registry.keys import HTTP_PREFIX
    from coditect.registry.redis import RedisRegistry
    from coditect.settings.addresses import vhost_of
    from coditect.telemetry.logs import configure_logs

    configure_logs(settings)  # to stderr: stdout is the client's
    broker, registry = adapters(settings, name="coditect mcp")
    blobs = open_blobs(settings.blob_url, most_bytes=settings.blob_max_bytes)
    http_agents = RedisRegistry(settings.redis_url, prefix=HTTP_PREFIX)
    async with broker, registry, http_agents, Client(broker, registry, blobs=blobs) as client:
        opened = SharedConnections(
            broker=lambda: adapters(settings, name="coditect mcp, one request")[0],
            registry=registry,
            http_agents=http_agents,
            client=client,
            environ=os.environ,
            vhost=vhost_of(settings.amqp_url),
        )
        await serve_stdio(opened, patterns)
