"""`coditect api`: runs the HTTP API, and makes, lists and revokes its keys."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.output import Output, OutputOption, TableView, say
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.errors import SetupError, missing_extra
from coditect.settings.api import api_settings
from coditect.settings.http_agents import http_agent_settings
from coditect.settings.settings import read_settings, read_variables

if TYPE_CHECKING:  # FastAPI, which is heavy
    from coditect.api.access.keys import KeyFile

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
    host: Annotated[str | None, typer.Option("--host", help="Where to listen. [CODITECT_API_HOST]")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="The port; 0 takes any. [CODITECT_API_PORT]")
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
    try:
        from coditect.api.program import ApiProgram
    except ImportError as error:
        raise missing_extra("api") from error

    variables = read_variables()
    api, http_agents = api_settings(variables), http_agent_settings(variables)
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
    from coditect.api.access.roles import Role

    typer.echo(_key_file().create(name, Role(role), made_at=datetime.now(UTC).isoformat(timespec="seconds")))
    say(f"{name} is {role} by this key, which is not shown again.")


@keys.command("list")
def list_keys(output: OutputOption = Output.TABLE, watch: WatchOption = False) -> None:
    """List whose keys there are, with their roles.

    \b
    Example: coditect api key list
    """
    file = _key_file()

    async def look() -> ShownAnswer:
        rows = [{"name": one.name, "role": one.role.value, "made_at": one.made_at} for one in file.keys().values()]
        table = TableView(("name", "role", "made at"), [tuple(row.values()) for row in rows], "There is no key.")
        return ShownAnswer(rows, (table,))

    present(look, output, watch=watch)


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
    try:
        from coditect.api.access.keys import KeyFile
    except ImportError as error:
        raise missing_extra("api") from error
    path = api_settings(read_variables()).keys
    if path is None:
        raise SetupError("No file for API keys is named", fix="CODITECT_API_KEYS=/etc/coditect/api-keys")
    return KeyFile(Path(path))
