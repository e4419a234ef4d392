"""`coditect dispatcher`: run the control plane."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Protocol, cast

import typer

from coditect.errors import ControlPlaneRequired
from coditect.settings import Settings, read_settings

GROUP = "coditect.control_plane"
"""The group of entry points under which a control plane offers itself."""

app = typer.Typer(no_args_is_help=True)


class Program(Protocol):
    """What an installed control plane offers to whoever runs it."""

    def main(self, settings: Settings) -> int:
        """Runs it until SIGTERM or SIGINT; gives the exit code."""


@app.command("run")
def run_dispatcher(
    store: Annotated[
        str | None, typer.Option("--store", help="The ledger: sqlite:PATH, or fdb:CLUSTER_FILE. [CODITECT_STORE]")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, max=1_024, help="Shards of a new ledger. [CODITECT_SHARDS]")
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option("--keep-days", min=0, max=3_650, help="How long ended workflows stay. [CODITECT_KEEP_DAYS]"),
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(
            "--health-port", min=0, max=65_535, help="/livez and /readyz; 0 takes any. [CODITECT_HEALTH_PORT]"
        ),
    ] = None,
) -> None:
    """Run the control plane until SIGTERM or SIGINT; it hands its shards over and ends.

    Any number of them share the work. What no option says is taken from the environment: those named below, and
    CODITECT_AMQP_URL, CODITECT_REDIS_URL, CODITECT_MANAGEMENT_URL, CODITECT_REPLY_QUEUE, CODITECT_DECLARE,
    CODITECT_WINDOW, CODITECT_WIRE, CODITECT_HEALTH_HOST and CODITECT_LOG_LEVEL.

    \b
    Example: coditect dispatcher run --store sqlite:ledger.db
    """
    given: dict[str, Any] = {"store": store, "shards": shards, "keep_days": keep_days, "health_port": health_port}
    settings = replace(read_settings(), **{name: one for name, one in given.items() if one is not None})
    raise typer.Exit(_installed().main(settings))


def _installed() -> Program:
    """The installed control plane. Raises: ControlPlaneRequired when there is none, or it cannot be loaded."""
    from importlib.metadata import entry_points

    for one in entry_points(group=GROUP):
        try:
            return cast(Program, one.load())
        except ImportError as error:
            raise ControlPlaneRequired(
                "The installed control plane cannot be loaded", reason=str(error), fix="pip install coditect"
            ) from error
    raise ControlPlaneRequired("No control plane is installed that could be run", fix="pip install coditect")
