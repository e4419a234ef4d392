"""`coditect api`: serve the HTTP API, manage its keys, and offer capabilities as tools to an MCP client."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coditect.aio.loop import run_loop
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.options import ShownAnswer, presented
from coditect.cli.terminal.output import TableView, say
from coditect.errors import SetupError, needing
from coditect.settings.settings import ApiSettings, HttpAgentSettings, Settings, read_settings, read_variables

if TYPE_CHECKING:
    from coditect.api.access import KeyFile


app = typer.Typer(invoke_without_command=True)
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of the HTTP API.")
app.add_typer(keys, name="key")

NameOption = Annotated[str, typer.Argument(metavar="NAME", help="Who has the key; the audit line names it.")]
RoleOption = Annotated[
    Literal["viewer", "operator", "approver", "admin"],
    typer.Option("--role", "-r", help="viewer reads, operator steers, approver answers approvals, admin all."),
]


@app.callback()
def serve_api(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Where to listen. [CODITECT_API_HOST]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="The port; 0 takes any. [CODITECT_API_PORT]")
    ] = None,
    any_port: Annotated[bool, typer.Option("--any-port", help="Take any free port when that one is taken.")] = False,
) -> None:
    """Serve the HTTP API and the dashboard until SIGTERM or SIGINT.

    Without keys (CODITECT_API_KEYS, CODITECT_API_KEY) every caller may do everything, and only this machine is served.

    \b
    Example: coditect api --port 8009
    """
    if context.invoked_subcommand is not None:
        return
    with needing("api"):
        from coditect.api.program import ApiProgram

    variables = read_variables()
    api, http_agents = ApiSettings.read(variables), HttpAgentSettings.read(variables)
    chosen = replace(api, host=api.host if host is None else host, port=api.port if port is None else port)
    say_guesses(AMQP, REDIS)
    open_to = "" if chosen.secured else " Whoever reaches it on this machine may do everything: it has no keys."
    ApiProgram(read_settings(), chosen, http_agents, any_port=any_port).run(
        lambda address: say(f"The API listens at {address}.{open_to} Ctrl-C stops it.")
    )


@keys.command("create")
def create_key(name: NameOption, role: RoleOption = "viewer") -> None:
    """Make a key and print it, once: the file CODITECT_API_KEYS keeps only its hash.

    \b
    Example: coditect api key create ci --role operator
    """
    from coditect.api.access import Role

    typer.echo(_key_file().create(name, Role(role), made_at=datetime.now(UTC).isoformat(timespec="seconds")))
    say(f"{name} is {role} by this key, which is not shown again.")


@keys.command("list")
@presented
async def list_keys() -> ShownAnswer:
    """List whose keys there are, with their roles.

    \b
    Example: coditect api key list
    """
    file = _key_file()
    rows = [{"name": key.name, "role": key.role.value, "made_at": key.made_at} for key in file.keys().values()]
    table = TableView(("name", "role", "made at"), [tuple(row.values()) for row in rows], "There is no key.")
    return ShownAnswer(rows, (table,))


@keys.command("revoke")
def revoke_key(name: NameOption) -> None:
    """Revoke a key: a running API refuses it from the next request on.

    \b
    Example: coditect api key revoke ci
    """
    _key_file().revoke(name)
    say(f"The key of {name} is revoked.")


def _key_file() -> KeyFile:
    """Return the file of API keys that CODITECT_API_KEYS names, as an object that reads and changes it.

    Raises:
        SetupError: when it names none, or the API is not installed.
    """
    with needing("api"):
        from coditect.api.access import KeyFile
    path = ApiSettings.read(read_variables()).keys
    if path is None:
        raise SetupError("No file for API keys is named", fix="CODITECT_API_KEYS=/etc/coditect/api-keys")
    return KeyFile(Path(path))


@app.command("mcp")
def serve_mcp(
    capability: Annotated[
        list[str] | None, typer.Option("--capability", "-c", help="Only these, such as 'code.*'; can be repeated.")
    ] = None,
) -> None:
    """Serve one MCP client over stdin and stdout, until it closes them; `coditect api` serves MCP over HTTP at /mcp.

    \b
    Example: coditect api mcp --capability 'code.*'
    """
    with needing("mcp"):
        import mcp  # noqa: F401 - the SDK, an optional dependency
    say_guesses(AMQP, REDIS)
    run_loop(_serve(read_settings(), capability or ["*"]))


async def _serve(settings: Settings, patterns: list[str]) -> None:
    from coditect.api.connections import SharedConnections
    from coditect.blobs import open_blobs
    from coditect.client.client import Client
    from coditect.client.program import adapters
    from coditect.integrations.mcp.serving import serve_stdio
    from coditect.registry.document import HTTP_PREFIX
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
