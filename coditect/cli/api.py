"""`coditect api`: runs the HTTP API."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.output import say
from coditect.errors import missing_extra
from coditect.settings.api import api_settings
from coditect.settings.http_agents import http_agent_settings
from coditect.settings.settings import read_settings, read_variables

app = typer.Typer(invoke_without_command=True)


@app.callback()
def serve_api(
    context: typer.Context,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen. [CODITECT_API_HOST]")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="The port; 0 takes any. [CODITECT_API_PORT]")
    ] = None,
) -> None:
    """Serve the HTTP API and the dashboard until SIGTERM or SIGINT.

    Without API keys every caller may do everything, and only this machine is served.

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
    ApiProgram(read_settings(), chosen, http_agents).run(
        lambda address: say(f"The API listens at {address}. Ctrl-C stops it.")
    )
