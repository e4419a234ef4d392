"""`coditect health`: ask an agent or a dispatcher of this machine or container whether it takes work."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException
from typing import Annotated

import typer

from coditect.cli.terminal.output import Output, OutputOption, render
from coditect.errors import SetupError
from coditect.settings.settings import read_settings

TIMEOUT_SECONDS = 3.0
"""More than a program takes to say that its event loop stands still."""
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - nothing listens here
"""The addresses that mean all interfaces, on which a program listens, each with the loopback address to connect to."""

app = typer.Typer()


@app.command("health")
def health_command(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65_535, help="The program's health port. [CODITECT_HEALTH_PORT]")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Ask the agent or dispatcher at the health port whether it takes work; exit 1 and say why when it does not.

    For the health check of a container, which needs no shell and no other program. It asks /readyz at
    CODITECT_HEALTH_HOST.

    \b
    Example: coditect health --port 9100
    """
    settings = read_settings()
    asked = port or settings.health_port
    if not asked:
        fix = "CODITECT_HEALTH_PORT, or --port: that of the program's --health-port"
        raise SetupError("No health port is named", fix=fix)
    ready, detail = _ask(ANYWHERE.get(settings.health_host, settings.health_host), asked)
    render(output, {"ready": ready, "detail": detail}, detail)
    if not ready:
        raise typer.Exit(1)


def _ask(host: str, port: int) -> tuple[bool, str]:
    """Ask a program's health port; return whether it is ready, and the text of its answer.

    Raises:
        SetupError: when nothing answers.
    """
    connection = HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status == 200, answer.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        fix = "start the program with --health-port or CODITECT_HEALTH_PORT"
        raise SetupError("Nothing answers at the health port", host=host, port=port, reason=reason, fix=fix) from error
    finally:
        connection.close()
